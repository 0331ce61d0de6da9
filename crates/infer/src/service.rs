//! The service: the detect stage, and single pictures.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use common::segment::Stage;
use common::service::auth::Gate;
use common::service::{Service, StageWork};
use common::store::Offer;
use prometheus::{Histogram, HistogramOpts};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::api::{self, DetectApi};
use crate::args::InferArgs;
use crate::device::Device;
use crate::stills::Stills;
use crate::{DetectStage, Detector, ModelFile, weights};

/// The port infer listens on unless told.
pub const PORT: u16 = 8081;

/// Segments held at once, so that reading, computing and publishing overlap.
const CPU_SLOTS: usize = 2;
const GPU_SLOTS: usize = 8;

/// Loads the model that the settings name. Blocks for about a second.
///
/// # Errors
/// When it cannot be used.
pub fn load(args: &crate::args::ModelArgs) -> Result<Detector> {
    let path = match &args.model {
        Some(path) => path.clone(),
        None => weights::default_path()?,
    };
    let model = ModelFile::open(&path)?;
    Ok(Detector::start(&model, &args.settings())?)
}

/// The stage this service works on.
#[must_use]
pub fn stages(service: &Service, detector: &Detector, slots: Option<usize>) -> Vec<StageWork> {
    let usual = match detector.device() {
        Device::Cpu => CPU_SLOTS,
        Device::Cuda(_) => GPU_SLOTS,
    };
    let work = DetectStage { volume: service.volume.clone(), detector: detector.clone() };
    vec![StageWork { slots: slots.unwrap_or(usual), work: Arc::new(work) }]
}

/// What this service lets jobs ask for.
#[must_use]
pub fn offer(detector: &Detector) -> Offer {
    Offer { key: detector.key().clone(), names: detector.names().to_vec() }
}

/// The routes of this service, open to whoever has one of `gates`' tokens.
///
/// # Errors
/// When the service has such metrics already.
pub fn router(service: &Service, detector: &Detector, gates: Vec<Gate>) -> Result<Router> {
    let batches = Histogram::with_opts(
        HistogramOpts::new("boxreel_batch_frames", "Frames computed together, of videos and pictures alike.")
            .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]),
    )?;
    service.registry.register(Box::new(batches.clone()))?;
    detector.observe_batches(batches);
    let stills = Stills::start(detector.clone(), &service.registry, service.stop.clone())?;
    Ok(api::router(DetectApi { stills, names: detector.names().into(), gates: gates.into() }))
}

/// Runs the service until it is told to stop.
///
/// # Errors
/// When it cannot start; the sentence says why.
pub async fn run(args: InferArgs, service: Service, detector: Detector) -> Result<()> {
    let (api, worker) = (args.service.api_token()?, args.service.worker_token()?);
    let address = args.service.listen(PORT, api.is_some() || worker.is_some())?;
    let gates = [api, worker.clone()].into_iter().flatten().map(|token| Gate::new(Some(&token)));
    let mut gates: Vec<Gate> = gates.collect();
    if gates.is_empty() {
        gates.push(Gate::new(None));
    }
    let router = router(&service, &detector, gates)?;
    let stages = stages(&service, &detector, args.service.slots.map(|slots| slots as usize));
    let reports = service.reports(args.pre_url.as_deref(), worker)?;
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{address} cannot be listened on"))?;
    let offer = Some(offer(&detector));
    debug_assert_eq!(stages[0].work.stage(), Stage::Detect);
    tokio::spawn(end_when_hung(detector.clone(), service.stall(), service.stop.clone()));
    Ok(service.run(listener, router, stages, offer, reports).await?)
}

/// Ends the process as a crash would when the model hangs: its leases expire, and whatever started it (Kubernetes)
/// starts it again. A thread in native code can't be stopped otherwise, and would keep what it is given for ever.
async fn end_when_hung(detector: Detector, stall: Duration, stop: CancellationToken) {
    if stop.run_until_cancelled(detector.hangs(stall)).await.is_some() {
        error!(
            "the network has computed one batch for {} s and hangs: this process ends, to be started again. If that \
             happens often, look at the machine (memory, GPU), or raise BOXREEL_STALL_SECONDS on a slow one",
            stall.as_secs()
        );
        crate::skip_destructors();
        std::process::exit(1);
    }
}
