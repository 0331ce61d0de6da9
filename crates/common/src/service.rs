//! What every service is made of: its store and volume, worker loops, an HTTP server with probes and metrics,
//! and an orderly end.

use std::pin::Pin;
use std::sync::{Arc, Once};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{ConfigError, Secret, ServiceArgs};
use crate::files::Volume;
use crate::http_error::HttpError;
use crate::meter::Meter;
use crate::metrics::LoopMetrics;
use crate::segment::Stage;
use crate::store::{Offer, Store, Worker};
use crate::timeline::{self, Reports, TimelineClient};
use crate::worker::{self, Hints, LoopEnd, LoopSettings, Work};

pub mod auth;
pub mod health;
pub mod program;
mod pulse;
mod serve;
pub mod telemetry;

pub use health::Health;
pub use serve::serve;

/// How often a worker says that it is there.
pub const ANNOUNCED_EVERY: Duration = Duration::from_secs(10);
/// A worker that was not heard of for this long is taken to be gone.
pub const GONE_AFTER: Duration = Duration::from_secs(35);

/// Makes TLS usable, once. Without it every client of HTTP panics when it is made.
pub fn crypto() {
    static ONCE: Once = Once::new();
    // An error means that somebody was first, which is as good.
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}

/// A stage that a service works on.
pub struct StageWork {
    /// Pieces of work in hand at once.
    pub slots: usize,
    /// The work.
    pub work: Arc<dyn Work>,
}

/// Brings gauges up to date; called before `/metrics` is answered.
pub type Refresh = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A running service's parts, shared by its loops and handlers.
#[derive(Clone)]
pub struct Service {
    /// `pre`, `infer` or `post`.
    pub name: &'static str,
    /// This worker's name.
    pub worker: String,
    /// Jobs and segments.
    pub store: Arc<dyn Store>,
    /// Files.
    pub volume: Volume,
    /// Wakes loops.
    pub hints: Arc<Hints>,
    /// Frames of work in hand.
    pub meter: Arc<Meter>,
    /// What `/metrics` shows.
    pub registry: Registry,
    /// Whether it can do its work.
    pub health: Health,
    /// Cancelled when the service is to end.
    pub stop: CancellationToken,
    refresh: Option<Refresh>,
    lease: Duration,
    stall: Duration,
    deadline: Duration,
}

impl Service {
    /// A service named `name` on `store` and `volume`, which ends when `stop` is cancelled; nothing runs yet.
    #[must_use]
    pub fn new(
        name: &'static str,
        args: &ServiceArgs,
        store: Arc<dyn Store>,
        volume: Volume,
        stop: CancellationToken,
    ) -> Self {
        crypto();
        let health = Health::new(store.clone(), volume.root().to_owned());
        Self {
            name,
            worker: format!("{name}-{}", args.name()),
            store,
            volume,
            hints: Hints::new(),
            meter: Arc::default(),
            registry: Registry::new(),
            health,
            stop,
            refresh: None,
            lease: Duration::from_secs(args.lease_seconds),
            stall: Duration::from_secs(args.stall_seconds),
            deadline: Duration::from_secs(args.shutdown_seconds),
        }
    }

    /// The length of leases.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// How long work may make no progress before it counts as hung.
    #[must_use]
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// How long open requests and work in hand may take to end.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Starts to report to the pre at `url`, if one is named.
    ///
    /// # Errors
    /// When `url` is none.
    pub fn reports(&self, url: Option<&str>, token: Option<Secret>) -> Result<Option<Reports>, ConfigError> {
        let Some(url) = url else { return Ok(None) };
        let client = TimelineClient::new(url, token)?;
        Ok(Some(timeline::start(client, self.store.clone(), self.stop.clone())))
    }

    /// Has `refresh` bring gauges up to date whenever somebody asks for the metrics.
    #[must_use]
    pub fn refreshing(self, refresh: Refresh) -> Self {
        Self { refresh: Some(refresh), ..self }
    }

    /// Works on `stages` and serves `router` (with `/healthz`, `/readyz` and `/metrics` added) at `listener` until
    /// [`Service::stop`] is cancelled; then hands back what is in hand, answers open requests and returns.
    ///
    /// # Errors
    /// When the metrics cannot be registered: a slip of this program.
    pub async fn run(
        self,
        listener: TcpListener,
        router: Router,
        stages: Vec<StageWork>,
        offer: Option<Offer>,
        reports: Option<Reports>,
    ) -> Result<(), prometheus::Error> {
        let names: Vec<Stage> = stages.iter().map(|stage| stage.work.stage()).collect();
        let metrics = LoopMetrics::registered(&self.registry, &names)?;
        let info = Worker {
            name: self.worker.clone(),
            stages: names,
            slots: stages.iter().map(|stage| u32::try_from(stage.slots).unwrap_or(u32::MAX)).sum(),
            offer,
            ready: true,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut tasks = JoinSet::new();
        for StageWork { slots, work } in stages {
            let settings = LoopSettings {
                slots,
                lease: self.lease,
                stall: self.stall,
                meter: self.meter.clone(),
                metrics: metrics.clone(),
                reports: reports.clone(),
                ..LoopSettings::new(self.worker.clone())
            };
            let Self { store, hints, stop, health, .. } = self.clone();
            tasks.spawn(async move {
                if worker::run(store, work, settings, hints, stop).await == LoopEnd::Unready {
                    health.set_unwell();
                }
            });
        }
        // Before the first request: what it offers is what a new job is made with.
        say_hello(&self, &info).await;
        tasks.spawn(announce(self.clone(), info));
        if let Ok(address) = listener.local_addr() {
            info!(worker = %self.worker, "{} listens on {address}", self.name);
        }
        let router = router.merge(probes(&self));
        serve(listener, router, self.stop.clone(), self.deadline).await;
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.deadline, ended).await.is_err() {
            warn!("some work did not end in time; its leases expire");
        }
        Ok(())
    }
}

/// The routes that look after the service itself. Open to all: they tell nothing about jobs.
fn probes(service: &Service) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .with_state(service.health.clone())
        .route("/metrics", get(metrics).with_state((service.registry.clone(), service.refresh.clone())))
}

async fn metrics(
    State((registry, refresh)): State<(Registry, Option<Refresh>)>,
) -> Result<impl IntoResponse, HttpError> {
    if let Some(refresh) = refresh {
        refresh().await;
    }
    let text = TextEncoder::new().encode_to_string(&registry.gather()).map_err(HttpError::internal)?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text))
}

async fn say_hello(service: &Service, info: &Worker) {
    if let Err(error) = service.store.announce(info).await {
        warn!("the worker cannot announce itself: {error}");
    }
}

/// Says again and again that the worker is there, and at the end that it has gone.
async fn announce(service: Service, mut info: Worker) {
    while service.stop.run_until_cancelled(tokio::time::sleep(ANNOUNCED_EVERY)).await.is_some() {
        info.ready = service.health.is_well();
        say_hello(&service, &info).await;
    }
    if let Err(error) = service.store.retire(&info.name).await {
        warn!("the worker cannot take its leave: {error}");
    }
}

/// Requests by the system or a user to stop (SIGTERM, SIGINT), none of which is missed, nor ends the program by
/// itself, once there is one of these.
pub struct Interrupts(Option<(Signal, Signal)>);

impl Interrupts {
    /// Listens from now on; to be called within a runtime.
    #[must_use]
    pub fn listen() -> Self {
        Self(signal(SignalKind::interrupt()).ok().zip(signal(SignalKind::terminate()).ok()))
    }

    /// Ends with the first of them.
    pub async fn first(self) {
        // Where signals can't be caught, they end the program by themselves.
        let Some((mut interrupt, mut terminate)) = self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}
