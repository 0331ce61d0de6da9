//! pre as a whole: its state, its routes, its stages and its duties.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::http::{Extensions, HeaderMap, StatusCode, Version};
use common::config::{Secret, ServiceArgs};
use common::files::Volume;
use common::http_error::HttpError;
use common::job::JobId;
use common::service::auth::Gate;
use common::service::{Service, StageWork};
use common::store::{Job, Store};
use media::child::{Pool, PoolSettings, Registry};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower_http::compression::predicate::{Predicate, SizeAbove};
use tower_http::compression::{CompressionLayer, CompressionLevel};

use crate::api::{self, Feed};
use crate::args::{PORT, PreArgs, PreSettings};
use crate::metrics::PreMetrics;
use crate::replicas::Scaling;
use crate::{DecodeStage, DecodeTask, IndexStage, IndexTask, callbacks, models, pages, reconcile, sweep};

/// Answers at once that hold a thread each while they are sent.
const STREAMS: usize = 64;
/// Answers of fewer bytes are not compressed: they fit into one packet anyway.
const SMALL: u64 = 1000;

/// What pre's handlers and duties share. Cloning it is cheap.
#[derive(Clone)]
pub struct App {
    /// Store, volume, hints.
    pub service: Service,
    /// What only pre has.
    pub settings: Arc<PreSettings>,
    /// Who may do what.
    pub gates: Gates,
    pub(crate) scaling: Scaling,
    pub(crate) admin_token: Option<Secret>,
    pub(crate) api_token: Option<Secret>,
    pub(crate) callback_secret: Option<Secret>,
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) metrics: PreMetrics,
    pub(crate) feed: Feed,
    pub(crate) http: reqwest::Client,
    pub(crate) callbacks: reqwest::Client,
    slots: usize,
}

/// The tokens that open parts of the interface.
#[derive(Debug, Clone)]
pub struct Gates {
    /// For users and programs: everything under `/v1`.
    pub api: Gate,
    /// For workers: the timeline.
    pub worker: Gate,
    /// For changing numbers of replicas.
    pub admin: Gate,
}

impl App {
    /// pre on the parts of `service`, as part of one process that does all the work (see [`App::scaled`]).
    ///
    /// # Errors
    /// When a setting cannot be used.
    pub fn new(service: Service, args: &ServiceArgs, settings: &PreSettings) -> Result<Self> {
        let metrics = PreMetrics::registered(&service.registry)?;
        let (store, gauges, volume) = (service.store.clone(), metrics.clone(), service.volume.clone());
        let service = service.refreshing(Arc::new(move || {
            let (store, gauges, volume) = (store.clone(), gauges.clone(), volume.clone());
            Box::pin(async move { refresh(store.as_ref(), &gauges, &volume).await })
        }));
        let (api_token, admin_token) = (args.api_token()?, settings.admin_token()?);
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Self {
            gates: Gates {
                api: Gate::new(api_token.as_ref()),
                worker: Gate::new(args.worker_token()?.as_ref()),
                admin: Gate::new(admin_token.as_ref()),
            },
            scaling: Scaling::one_process(),
            admin_token,
            api_token,
            callback_secret: settings.callback_secret()?,
            uploads: Arc::new(Semaphore::new(settings.max_uploads as usize)),
            streams: Arc::new(Semaphore::new(STREAMS)),
            metrics,
            feed: Feed::new(service.store.clone(), service.hints.clone(), service.stop.clone()),
            http: api::client(settings.infer_url.as_deref())?,
            callbacks: callbacks::client(settings.allow_private_callbacks)?,
            slots: args.slots.map_or(cores, |slots| slots as usize),
            settings: Arc::new(settings.clone()),
            service,
        })
    }

    /// One service of several, whose replicas are shown and changed by `scaling`.
    #[must_use]
    pub fn scaled(self, scaling: Scaling) -> Self {
        Self { scaling, ..self }
    }

    /// Jobs and segments.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        self.service.store.as_ref()
    }

    /// Files.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        &self.service.volume
    }

    /// The job, for somebody who asks for it; one that is being deleted is no more.
    ///
    /// # Errors
    /// 404 when there is none.
    pub async fn job(&self, id: JobId) -> Result<Job, HttpError> {
        let job = self.store().job(id).await?.filter(|job| job.deleted.is_none());
        job.ok_or_else(|| HttpError::not_found(format!("There is no job {id}.")))
    }
}

/// What pre does when it is started as a child of itself.
#[must_use]
pub fn children() -> Registry {
    Registry::new().with::<IndexTask>().with::<DecodeTask>()
}

/// All of pre's routes but the probes. What is text travels compressed, by gzip: browsers take Brotli over TLS only, and
/// a proxy that speaks TLS compresses as it likes.
pub fn router(app: App) -> Router {
    let text = SizeAbove::new(SMALL).and(is_text);
    // Level 4 is several times as quick as the best, for a tenth more bytes.
    let compressed = CompressionLayer::new().quality(CompressionLevel::Precise(4)).compress_when(text);
    pages::around(app.clone(), api::router(app)).layer(compressed)
}

/// Whether an answer is worth compressing: videos, pictures and archives are compressed already, and events must
/// not wait until there are enough of them.
fn is_text(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    let kind = api::media_type(headers).unwrap_or_default();
    kind != "text/event-stream"
        && (kind.starts_with("text/")
            || matches!(kind.as_str(), "application/json" | "application/jsonl" | "image/svg+xml"))
}

/// The stages pre works on.
#[must_use]
pub fn stages(app: &App) -> Vec<StageWork> {
    let Service { store, volume, .. } = app.service.clone();
    let pool = Arc::new(Pool::new(PoolSettings::new(app.slots)));
    let index = IndexStage {
        store: store.clone(),
        volume: volume.clone(),
        pool: pool.clone(),
        limits: app.settings.limits(),
    };
    let decode = DecodeStage { store, volume, pool, pack_budget: app.settings.pack_budget };
    vec![
        // A video's end of the queue is not known before it is indexed, so nobody should wait long for it.
        StageWork { slots: app.slots.min(2), work: Arc::new(index) },
        StageWork { slots: app.slots, work: Arc::new(decode) },
    ]
}

/// Starts what pre looks after beside its stages, until [`Service::stop`].
#[must_use]
pub fn duties(app: &App) -> JoinSet<()> {
    let mut duties = JoinSet::new();
    let Service { store, hints, stop, worker, .. } = app.service.clone();
    duties.spawn(reconcile::run_shared(store, worker, hints, stop));
    duties.spawn(callbacks::run(app.clone()));
    duties.spawn(models::run(app.clone()));
    duties.spawn(sweep::run(app.clone()));
    duties
}

/// Serves and works until [`Service::stop`] is cancelled.
///
/// # Errors
/// See [`Service::run`].
pub async fn run(app: App, listener: TcpListener) -> Result<()> {
    let mut duties = duties(&app);
    let (service, stages) = (app.service.clone(), stages(&app));
    service.run(listener, router(app), stages, None, None).await?;
    while duties.join_next().await.is_some() {}
    Ok(())
}

/// Runs the service as `args` say, until it is told to stop.
///
/// # Errors
/// When it cannot start; the sentence says why.
pub async fn serve(args: &PreArgs, service: Service) -> Result<()> {
    let app = App::new(service, &args.service, &args.pre)?.scaled(Scaling::around());
    let guarded = app.gates.api.is_closed() && app.gates.worker.is_closed();
    let address = args.service.listen(PORT, guarded)?;
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{address} cannot be listened on"))?;
    run(app, listener).await
}

/// Brings the gauges up to date.
async fn refresh(store: &dyn Store, gauges: &PreMetrics, volume: &Volume) {
    match store.queues().await {
        Ok(queues) => gauges.queues(&queues),
        Err(error) => tracing::warn!("the queues cannot be measured: {error}"),
    }
    if let Ok(free) = api::free_space(volume).await {
        gauges.free.set(i64::try_from(free).unwrap_or(i64::MAX));
    }
}
