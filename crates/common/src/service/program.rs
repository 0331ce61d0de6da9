//! From the command line to a running service and back: what every service's `main` does.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Interrupts, Service, pulse, telemetry};
use crate::config::{self, ClusterArgs, LogArgs, ServiceArgs};
use crate::files::Volume;
use crate::store::StoreError;
use crate::store::mongo::MongoStore;

/// How long the database may take to appear when a service starts; the container is started again after that.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Ends the program (exit code 2) if a variable of the environment looks like Boxreel's and is not. To be called
/// before the command line is parsed.
pub fn check_environment() {
    if let Err(error) = config::check_environment(config::environment_names()) {
        eprintln!("boxreel: {error}");
        std::process::exit(2);
    }
}

/// Ends the program with a health check's answer if its first argument is the word `health`: exit code 0 where the
/// service on this machine answers at `BOXREEL_LISTEN`, or at `port`, and 1 where not. Containers are checked by it,
/// which hold no other client of HTTP. To be called before the command line is parsed.
pub fn answer_health_check(port: u16) {
    if std::env::args_os().nth(1).is_none_or(|word| word != "health") {
        return;
    }
    let listen = std::env::var("BOXREEL_LISTEN").ok().map_or_else(
        || Ok(SocketAddr::from(([127, 0, 0, 1], port))),
        |listen| listen.parse().map_err(|error| format!("BOXREEL_LISTEN={listen:?}: {error}")),
    );
    match listen.and_then(|address| pulse::ask(address).map_err(|error| format!("{address}: {error}"))) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("boxreel: not alive: {error}");
            std::process::exit(1);
        }
    }
}

/// Runs `main` with logs and traces started, until it returns; SIGTERM and SIGINT cancel the token it is given.
/// Exit codes: 0 all well, 1 it failed.
#[must_use]
pub fn run<F>(service: &'static str, logs: &LogArgs, main: impl FnOnce(CancellationToken) -> F) -> ExitCode
where
    F: Future<Output = Result<()>>,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("boxreel: {service} cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        let interrupts = Interrupts::listen();
        let telemetry = telemetry::init(service, logs)?;
        let stop = CancellationToken::new();
        let signals = stop.clone();
        tokio::spawn(async move {
            interrupts.first().await;
            info!("asked to stop");
            signals.cancel();
        });
        let ended = main(stop).await;
        if let Err(error) = &ended {
            error!("{service} ends: {error:#}");
        }
        // Sends the last traces, which blocks.
        tokio::task::spawn_blocking(move || drop(telemetry)).await?;
        ended
    });
    // Work that was dropped may still compute; nothing waits for it any more.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("boxreel: {service}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A service of a cluster: on the database and the volume of its settings, hearing the other processes' hints.
///
/// # Errors
/// When the database or the volume cannot be used.
pub async fn service(
    name: &'static str,
    args: &ServiceArgs,
    cluster: &ClusterArgs,
    stop: CancellationToken,
) -> Result<Service> {
    // Absolute: children run elsewhere.
    let root = cluster.data_dir.canonicalize().with_context(|| {
        format!(
            "{} cannot be used: mount the shared volume there, or set BOXREEL_DATA_DIR",
            cluster.data_dir.display()
        )
    })?;
    let connected = stop.run_until_cancelled(connect(cluster)).await;
    let store = connected.context("asked to stop before the database answered")??;
    let service = Service::new(name, args, Arc::new(store.clone()), Volume::new(root), stop);
    let (hints, stop) = (service.hints.clone(), service.stop.clone());
    tokio::spawn(async move { store.bridge(hints, stop).await });
    Ok(service)
}

/// Connects to the database of the settings, waiting for it for a while.
async fn connect(args: &ClusterArgs) -> Result<MongoStore> {
    let uri = args.mongo()?;
    let started = tokio::time::Instant::now();
    loop {
        match MongoStore::connect(uri.reveal(), &args.mongo_database).await {
            Ok(store) => return Ok(store),
            Err(StoreError::Unavailable(why)) if started.elapsed() < PATIENCE => {
                warn!("waiting for the database: {why}");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
