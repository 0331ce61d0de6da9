//! The threads that own the model, and the queue before them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use std::collections::VecDeque;

use common::detection::Detection;
use common::job::ModelKey;
use common::pack::Pack;
use prometheus::Histogram;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::device::{self, Device, DeviceChoice, DeviceError, Precision, PrecisionChoice};
use crate::native;
use crate::ssd300::boxes::{DefaultBox, default_boxes};
use crate::ssd300::nms::{self, NmsOptions};
use crate::ssd300::{FRAME_BYTES, NetworkError, Ssd300};
use crate::weights::{ModelError, ModelFile, StateDict};

/// Where and how to detect.
#[derive(Debug, Clone, Default)]
pub struct DetectorSettings {
    /// The device.
    pub device: DeviceChoice,
    /// The arithmetic.
    pub precision: PrecisionChoice,
    /// Pictures computed together; by default what suits the device.
    pub batch: Option<usize>,
    /// Threads on a CPU; by default one for each core. A GPU has one.
    pub threads: Option<usize>,
}

/// Pictures in a batch on a CPU, unless told.
const CPU_BATCH: usize = 4;
/// Pictures in a batch on a GPU, unless told.
const GPU_BATCH: usize = 32;

/// The device and arithmetic that `settings` come to on this machine with these weights: what a job's [`ModelKey`]
/// freezes.
///
/// # Errors
/// When what the settings ask for is not there.
pub fn resolve(settings: &DetectorSettings, dict: &StateDict) -> Result<(Device, Precision), DeviceError> {
    device::choose(settings.device, settings.precision, dict.scales())
}

/// Why there are no detections.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DetectError {
    /// The caller cancelled.
    #[error("detection was cancelled")]
    Cancelled,
    /// The pictures are not what they should be.
    #[error("detection was given {0}")]
    BadFrames(String),
    /// The network failed; another try, or another machine, may do.
    #[error("detection failed: {0}")]
    Failed(String),
    /// The threads that own the model are gone.
    #[error("the detector has stopped working; restart the program")]
    Dead,
}

/// Pictures to detect in: 300×300, RGB, rows top to bottom, one after the other.
#[derive(Clone)]
pub struct Frames {
    source: Arc<Source>,
    wanted: Vec<u32>,
}

enum Source {
    Pack(Arc<Pack>),
    Bytes(Vec<u8>),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Pack(pack) => pack.frames(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Frames {
    /// All frames of a pack.
    #[must_use]
    pub fn of_pack(pack: Arc<Pack>) -> Self {
        Self::all(Source::Pack(pack))
    }

    /// Pictures in memory, n × 300 × 300 × 3 bytes.
    #[must_use]
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        Self::all(Source::Bytes(bytes))
    }

    fn all(source: Source) -> Self {
        let count = source.bytes().len().div_ceil(FRAME_BYTES) as u32;
        Self { source: Arc::new(source), wanted: (0..count).collect() }
    }

    /// Only these, by their position from 0, in this order.
    #[must_use]
    pub fn only(self, wanted: Vec<u32>) -> Self {
        Self { wanted, ..self }
    }

    /// Frames that are wanted: as many results come back.
    #[must_use]
    pub fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Whether none is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    fn check(&self) -> Result<(), DetectError> {
        let bytes = self.source.bytes().len();
        if !bytes.is_multiple_of(FRAME_BYTES) {
            return Err(DetectError::BadFrames(format!(
                "{bytes} bytes, which is no whole number of pictures of {FRAME_BYTES}"
            )));
        }
        match self.wanted.iter().find(|frame| **frame as usize >= bytes / FRAME_BYTES) {
            Some(frame) => Err(DetectError::BadFrames(format!(
                "{} pictures, and asked for number {frame}",
                bytes / FRAME_BYTES
            ))),
            None => Ok(()),
        }
    }
}

/// A batch on its way to a thread, and where the answer goes.
struct Batch {
    frames: Arc<Source>,
    wanted: Vec<u32>,
    options: NmsOptions,
    answer: oneshot::Sender<Result<Vec<Vec<Detection>>, DetectError>>,
}

/// Detects objects: owns the model, on threads of its own. Clones share it; the last one dropped stops the
/// threads and waits for them, at most for one layer of the network.
#[derive(Clone)]
pub struct Detector {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Option<mpsc::Sender<Batch>>,
    threads: Vec<JoinHandle<()>>,
    paces: Vec<Arc<Pace>>,
    key: ModelKey,
    names: Vec<String>,
    device: Device,
    batch: usize,
    observed: OnceLock<Histogram>,
}

/// How often a thread has begun or ended a batch: odd while it computes one.
#[derive(Debug, Default)]
struct Pace(AtomicU64);

impl Pace {
    fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without a sender the threads' next receive ends them.
        self.queue = None;
        for thread in self.threads.drain(..) {
            // Panics were caught inside and answered; there is nothing more to say about them.
            let _ = thread.join();
        }
    }
}

impl Detector {
    /// Loads the model and starts its threads. Blocks for about a second: not to be called in an async task.
    ///
    /// # Errors
    /// When the device is not there, the file changed or is unreadable, or memory does not suffice.
    pub fn start(model: &ModelFile, settings: &DetectorSettings) -> Result<Self, ModelError> {
        let dict = model.tensors()?;
        let (device, precision) = resolve(settings, &dict)?;
        let (batch, threads) = match device {
            Device::Cpu => {
                let cores = thread::available_parallelism().map_or(1, usize::from);
                (settings.batch.unwrap_or(CPU_BATCH), settings.threads.unwrap_or(cores))
            }
            Device::Cuda(_) => (settings.batch.unwrap_or(GPU_BATCH), 1),
        };
        let (batch, threads) = (batch.max(1), threads.max(1));
        native::keep_freed_memory();
        // Loading, too, must not start a pool of OpenMP threads on the caller's thread.
        let network = thread::scope(|scope| {
            let loader = scope.spawn(|| {
                tch::set_num_threads(1);
                Ssd300::load(&dict, device, precision, batch)
            });
            loader.join().unwrap_or_else(|panic| Err(NetworkError::Torch(said(panic.as_ref()))))
        })?;
        drop(dict);

        let (sender, receiver) = mpsc::channel(threads);
        let receiver = Arc::new(Mutex::new(receiver));
        let defaults: Arc<[DefaultBox]> = default_boxes().into();
        let paces: Vec<Arc<Pace>> = (0..threads).map(|_| Arc::default()).collect();
        let mut handles = Vec::with_capacity(threads);
        for (number, pace) in paces.iter().enumerate() {
            let (network, receiver, defaults) = (network.share(), receiver.clone(), defaults.clone());
            let pace = pace.clone();
            let handle = thread::Builder::new()
                .name(format!("detect-{number}"))
                .spawn(move || work(&network, &receiver, &defaults, &pace))
                .map_err(|error| NetworkError::Torch(format!("no thread could be started: {error}")))?;
            handles.push(handle);
        }
        let key = ModelKey { digest: model.digest.clone(), precision };
        let inner = Inner {
            queue: Some(sender),
            threads: handles,
            paces,
            key,
            names: model.names.clone(),
            device,
            batch,
            observed: OnceLock::new(),
        };
        let detector = Self { inner: Arc::new(inner) };
        tracing::info!(device = %device, %precision, threads, batch, "{}", detector.describe());
        Ok(detector)
    }

    /// The model and arithmetic its results belong to.
    #[must_use]
    pub fn key(&self) -> &ModelKey {
        &self.inner.key
    }

    /// Names of the classes, in the order of the outputs.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.inner.names
    }

    /// Where the network runs.
    #[must_use]
    pub fn device(&self) -> Device {
        self.inner.device
    }

    /// Returns once a thread has been computing the same batch for `limit`: it hangs, and nothing but the end of
    /// the process can stop it. Counts its own looks, so that a process that was itself stopped is not taken for hung.
    pub async fn hangs(&self, limit: Duration) {
        const LOOKS: u32 = 4;
        let paces = &self.inner.paces;
        let mut seen = vec![(0, 0); paces.len()];
        loop {
            tokio::time::sleep(limit / LOOKS).await;
            for (pace, (last, looks)) in paces.iter().zip(&mut seen) {
                let now = pace.0.load(Ordering::Relaxed);
                *looks = if now == *last && now % 2 == 1 { *looks + 1 } else { 0 };
                *last = now;
                if *looks >= LOOKS {
                    return;
                }
            }
        }
    }

    /// Has the sizes of batches observed from now on. Only the first call counts.
    pub fn observe_batches(&self, sizes: Histogram) {
        let _ = self.inner.observed.set(sizes);
    }

    /// One line for people: what runs where.
    #[must_use]
    pub fn describe(&self) -> String {
        let Inner { names, device, batch, threads, key, .. } = &*self.inner;
        let plural = if threads.len() == 1 { "thread" } else { "threads" };
        format!(
            "SSD300-ResNet50 ({} classes) on the {device}, {}, {} {plural}, batches of {batch}",
            names.len(),
            key.precision,
            threads.len()
        )
    }

    /// Detects in the wanted frames: one list for each, best first. Batches hold frames of this call only, so
    /// results don't depend on what else is going on. `progress` hears how many frames are done.
    ///
    /// # Errors
    /// [`DetectError::Cancelled`] soon after `cancel`, and otherwise what went wrong.
    pub async fn detect(
        &self,
        frames: Frames,
        options: NmsOptions,
        cancel: &CancellationToken,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Vec<Vec<Detection>>, DetectError> {
        frames.check()?;
        let inner = &*self.inner;
        let queue = inner.queue.as_ref().ok_or(DetectError::Dead)?;
        let mut results = Vec::with_capacity(frames.len());
        let mut batches = frames.wanted.chunks(inner.batch);
        let mut waiting = VecDeque::new();
        loop {
            // Enough to keep every thread busy, and no more: other calls wait in the same queue.
            while waiting.len() <= inner.threads.len()
                && let Some(wanted) = batches.next()
            {
                let (answer, answered) = oneshot::channel();
                let batch = Batch { frames: frames.source.clone(), wanted: wanted.to_vec(), options, answer };
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return Err(DetectError::Cancelled),
                    sent = queue.send(batch) => sent.map_err(|_| DetectError::Dead)?,
                }
                if let Some(sizes) = inner.observed.get() {
                    sizes.observe(wanted.len() as f64);
                }
                waiting.push_back(answered);
            }
            let Some(answered) = waiting.pop_front() else { return Ok(results) };
            // Returning drops the receivers, which the threads notice.
            let answer = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(DetectError::Cancelled),
                answer = answered => answer.map_err(|_| DetectError::Dead)?,
            };
            results.extend(answer?);
            progress(results.len() as u64);
        }
    }
}

/// What a thread does until there is no more sender.
fn work(network: &Ssd300, receiver: &Mutex<mpsc::Receiver<Batch>>, defaults: &[DefaultBox], pace: &Pace) {
    // Several threads of one OpenMP thread each: an OpenMP team waits for its slowest member, and beside
    // decoding and encoding one always is.
    tch::set_num_threads(1);
    loop {
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(batch) = next else { return };
        let go_on = || !batch.answer.is_closed();
        if !go_on() {
            continue;
        }
        pace.step();
        let detected = catch_unwind(AssertUnwindSafe(|| compute(network, &batch, defaults, &go_on)));
        pace.step();
        let answer = match detected {
            Ok(Ok(detections)) => Ok(detections),
            Ok(Err(NetworkError::Stopped)) => Err(DetectError::Cancelled),
            Ok(Err(error)) => Err(DetectError::Failed(error.to_string())),
            Err(panic) => Err(DetectError::Failed(said(panic.as_ref()))),
        };
        // The caller may have gone; then nobody wants to know.
        let _ = batch.answer.send(answer);
    }
}

fn compute(
    network: &Ssd300,
    batch: &Batch,
    defaults: &[DefaultBox],
    go_on: &dyn Fn() -> bool,
) -> Result<Vec<Vec<Detection>>, NetworkError> {
    let bytes = batch.frames.bytes();
    let gathered;
    let consecutive = batch.wanted.windows(2).all(|pair| pair[1] == pair[0] + 1);
    let pictures = match batch.wanted.first() {
        Some(first) if consecutive => {
            &bytes[*first as usize * FRAME_BYTES..][..batch.wanted.len() * FRAME_BYTES]
        }
        _ => {
            gathered = batch
                .wanted
                .iter()
                .flat_map(|frame| &bytes[*frame as usize * FRAME_BYTES..][..FRAME_BYTES])
                .copied()
                .collect::<Vec<u8>>();
            &gathered
        }
    };
    let raw = network.forward(pictures, go_on)?;
    (0..raw.pictures()).map(|picture| nms::detections(&raw, picture, defaults, batch.options)).collect()
}

/// The text of a panic.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("an unknown panic");
    native::first_line(text)
}
