//! `boxreel serve`: the whole house in one process, for a laptop. The same routes, stages and duties as the three
//! services have, on one SQLite store.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use common::clock::SystemClock;
use common::config::ServiceArgs;
use common::files::{Volume, lock};
use common::service::auth::Gate;
use common::service::{Service, serve};
use common::store::sqlite::SqliteStore;
use infer::args::ModelArgs;
use pre::{App, PreSettings};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Arguments of `boxreel serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// What every service has.
    #[command(flatten)]
    pub service: ServiceArgs,

    /// Where uploads, results and the store are kept.
    #[arg(long, env = "BOXREEL_DATA_DIR", default_value = "boxreel-data", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// What pre has.
    #[command(flatten)]
    pub pre: PreSettings,

    /// The network.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Runs the house until `stop`.
///
/// # Errors
/// When it cannot start; the sentence says why.
pub async fn run(args: Box<ServeArgs>, stop: CancellationToken) -> Result<()> {
    let (root, _lock) = take(&args.data_dir)?;
    let model = args.model.clone();
    let detector = tokio::task::spawn_blocking(move || infer::service::load(&model)).await??;
    let store = SqliteStore::open(&root.join("store.sqlite"), Arc::new(SystemClock))
        .context("The store cannot be opened")?;
    // The folder is locked: whoever held these leases is gone, and no attempt of theirs has failed.
    store.hand_back_all().await.context("What a killed process held cannot be freed")?;
    let service = Service::new("boxreel", &args.service, Arc::new(store), Volume::new(root), stop);

    // infer's own door, for pre to pass pictures on.
    let inner = TcpListener::bind("127.0.0.1:0").await.context("No port is free")?;
    let gate = Gate::new(args.service.api_token()?.as_ref());
    let pictures = infer::service::router(&service, &detector, vec![gate])?;
    let settings =
        PreSettings { infer_url: Some(format!("http://{}", inner.local_addr()?)), ..args.pre.clone() };
    let door = tokio::spawn(serve(inner, pictures, service.stop.clone(), service.deadline()));

    let app = App::new(service.clone(), &args.service, &settings)?;
    let service = app.service.clone();
    let guarded = app.gates.api.is_closed() && app.gates.worker.is_closed();
    let address = args.service.listen(pre::PORT, guarded)?;
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{address} cannot be listened on"))?;
    eprintln!("Boxreel is at http://{}/ (Ctrl-C ends it)", listener.local_addr()?);

    let slots = args.service.slots.map(|slots| slots as usize);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut stages = pre::stages(&app);
    stages.extend(infer::service::stages(&service, &detector, slots));
    stages.extend(post::service::stages(&service, slots.unwrap_or(cores)));
    let mut duties = pre::duties(&app);
    let offer = infer::service::offer(&detector);
    service.run(listener, pre::router(app), stages, Some(offer), None).await?;
    while duties.join_next().await.is_some() {}
    door.await.context("The way to the network broke down")
}

/// Makes the folder and locks it: two processes on one SQLite store would take each other's work for lost.
fn take(folder: &Path) -> Result<(PathBuf, File)> {
    fs::create_dir_all(folder).with_context(|| format!("The folder {} cannot be made", folder.display()))?;
    let root = folder.canonicalize()?;
    let lock = lock(&root).with_context(|| format!("The folder {} cannot be locked", folder.display()))?;
    let Some(lock) = lock else {
        bail!("Another boxreel serves from {}; end it, or name another --data-dir.", folder.display())
    };
    Ok((root, lock))
}
