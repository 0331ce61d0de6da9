//! The service: the stages render and assemble.

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use common::service::{Service, StageWork};
use media::child::{Pool, PoolSettings, Registry};
use tokio::net::TcpListener;

use crate::args::PostArgs;
use crate::{AssembleStage, AssembleTask, RenderStage, RenderTask};

/// The port post listens on unless told.
pub const PORT: u16 = 8082;

/// What the program does when it is started as a child of itself.
#[must_use]
pub fn children() -> Registry {
    Registry::new().with::<RenderTask>().with::<AssembleTask>()
}

/// The stages this service works on, with `slots` segments drawn at once.
#[must_use]
pub fn stages(service: &Service, slots: usize) -> Vec<StageWork> {
    let pool = Arc::new(Pool::new(PoolSettings::new(slots + 1)));
    let Service { store, volume, .. } = service.clone();
    let render = RenderStage { volume: volume.clone(), pool: pool.clone() };
    let assemble = AssembleStage { store, volume, pool };
    vec![StageWork { slots, work: Arc::new(render) }, StageWork { slots: 1, work: Arc::new(assemble) }]
}

/// Runs the service until it is told to stop.
///
/// # Errors
/// When it cannot start; the sentence says why.
pub async fn run(args: PostArgs, service: Service) -> Result<()> {
    // Its routes tell nothing about jobs: there is nothing to guard.
    let address = args.service.listen(PORT, true)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let stages = stages(&service, args.service.slots.map_or(cores, |slots| slots as usize));
    let reports = service.reports(args.pre_url.as_deref(), args.service.worker_token()?)?;
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{address} cannot be listened on"))?;
    Ok(service.run(listener, Router::new(), stages, None, reports).await?)
}
