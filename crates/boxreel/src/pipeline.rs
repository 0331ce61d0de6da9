//! All stages of the house, running in this process on one store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use common::clock::SystemClock;
use common::files::Volume;
use common::meter::Meter;
use common::store::JobStore;
use common::store::sqlite::SqliteStore;
use common::worker::{self, Hints, LoopSettings, Work};
use infer::{DetectStage, Detector};
use media::child::{Pool, PoolSettings};
use media::probe::Limits;
use post::{AssembleStage, RenderStage};
use pre::{DecodeStage, IndexStage};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Bytes of packs that may wait for the network: about ten segments.
pub const PACK_BUDGET: u64 = 300 << 20;
/// Claims at once for the stage that feeds the network: one computes while another reads or publishes.
const DETECT_SLOTS: usize = 3;

/// How long the store may refuse every write before the run is given up.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// Every stage on a store and a volume, each with how many pieces of its work are done at once: `slots` where video is read
/// or drawn. Decode waits while packs of more than `pack_budget` bytes wait for the network.
#[must_use]
pub fn stages(
    store: &Arc<dyn JobStore>,
    volume: &Volume,
    detector: Detector,
    slots: usize,
    pack_budget: u64,
) -> [(usize, Arc<dyn Work>); 5] {
    let pool = |slots| Arc::new(Pool::new(PoolSettings::new(slots)));
    let (reading, drawing) = (pool(slots), pool(slots));
    let (store, volume) = (store.clone(), volume.clone());
    let index = IndexStage {
        store: store.clone(),
        volume: volume.clone(),
        pool: reading.clone(),
        limits: Limits::default(),
    };
    let decode = DecodeStage { store: store.clone(), volume: volume.clone(), pool: reading, pack_budget };
    let detect = DetectStage { volume: volume.clone(), detector };
    let render = RenderStage { volume: volume.clone(), pool: drawing.clone() };
    let assemble = AssembleStage { store, volume, pool: drawing };
    [
        (1, Arc::new(index)),
        (slots, Arc::new(decode)),
        (DETECT_SLOTS, Arc::new(detect)),
        (slots, Arc::new(render)),
        (1, Arc::new(assemble)),
    ]
}

/// The running stages.
pub struct Pipeline {
    /// Where jobs are.
    pub store: Arc<dyn JobStore>,
    sqlite: SqliteStore,
    /// Where their files are.
    pub volume: Volume,
    /// Tells of changes.
    pub hints: Arc<Hints>,
    /// Counts frames as they go.
    pub meter: Arc<Meter>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Pipeline {
    /// Starts every stage on the store and volume under `state`, with `slots` segments decoded and drawn at once.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub async fn start(state: &Path, detector: Detector, slots: usize) -> Result<Self> {
        let store = SqliteStore::open(&state.join("store.sqlite"), Arc::new(SystemClock))
            .context("Cannot open the run's store")?;
        // The run's folder is locked: whoever held these leases is gone, and no attempt of theirs has failed.
        store.hand_back_all().await.context("Cannot free what a killed process held")?;
        let sqlite = store.clone();
        let store: Arc<dyn JobStore> = Arc::new(store);
        let volume = Volume::new(state.join("volume"));
        let hints = Hints::new();
        let stop = CancellationToken::new();
        let meter = Arc::new(Meter::default());
        let mut tasks = JoinSet::new();
        for (slots, work) in stages(&store, &volume, detector, slots, PACK_BUDGET) {
            let settings = LoopSettings {
                slots,
                meter: meter.clone(),
                // There is no other worker that could take over: files that are all at fault must each get their
                // answer.
                streak: 0,
                ..LoopSettings::new(format!("{}-{}", work.stage(), std::process::id()))
            };
            let (store, hints, stop) = (store.clone(), hints.clone(), stop.clone());
            tasks.spawn(async move {
                worker::run(store, work, settings, hints, stop).await;
            });
        }
        tasks.spawn(pre::reconcile::run(store.clone(), hints.clone(), stop.clone()));
        Ok(Self { store, sqlite, volume, hints, meter, stop, tasks })
    }

    /// Whether the store takes what the stages report.
    ///
    /// # Errors
    /// When it has refused for so long that waiting makes no sense: the disk is full, or gone.
    pub fn check_store(&self) -> Result<()> {
        match self.sqlite.refuses_writes() {
            Some((time, why)) if time >= STORE_PATIENCE => {
                Err(anyhow!("its progress cannot be recorded: {why}"))
            }
            _ => Ok(()),
        }
    }

    /// Stops every stage: children are killed, leases handed back, drafts removed.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_millis(700), async {
            while self.tasks.join_next().await.is_some() {}
        });
        if ended.await.is_err() {
            tracing::debug!("some stages did not end in time; their leases expire");
        }
    }
}
