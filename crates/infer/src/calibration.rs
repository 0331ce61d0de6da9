//! Scales for int8: what the network's activations come to on real pictures, and how much a step of a byte is worth.
//!
//! Weights need no pictures, their scales come from themselves. Of the activations it has to be seen how large they
//! get. [`Calibrator`] runs the fp32 network over pictures for that, and [`ModelFile::with_scales`] puts what it finds
//! into a weights file.

mod histogram;
mod scales;

use std::collections::BTreeMap;
use std::thread;

use crate::device::{Device, Precision};
use crate::native;
use crate::ssd300::{FRAME_BYTES, NetworkError, Quantization, Ssd300, activations};
use crate::weights::{ModelError, ModelFile};
use histogram::Histogram;
pub use scales::{Scales, Uncalibrated};

/// Pictures computed together.
const BATCH: usize = 4;

type Histograms = BTreeMap<String, Histogram>;

/// Watches the activations of the fp32 network.
pub struct Calibrator {
    network: Ssd300,
    seen: Histograms,
}

impl Calibrator {
    /// Loads the model, onto the CPU. Blocks for about a second.
    ///
    /// # Errors
    /// When the file changed or is unreadable, or memory does not suffice.
    pub fn start(model: &ModelFile) -> Result<Self, ModelError> {
        native::keep_freed_memory();
        let network = Ssd300::load(&model.tensors()?, Device::Cpu, Precision::Fp32, BATCH)?;
        Ok(Self { network, seen: Histograms::new() })
    }

    /// Looks at pictures (n × 300 × 300 × 3 bytes, RGB) on all cores. What comes of it depends neither on their order
    /// nor on how they are spread over the cores.
    ///
    /// # Errors
    /// What libtorch said.
    pub fn observe(&mut self, pictures: &[u8]) -> Result<(), NetworkError> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let share = (pictures.len() / FRAME_BYTES).div_ceil(cores).max(1) * FRAME_BYTES;
        let seen = thread::scope(|scope| {
            let workers: Vec<_> = pictures
                .chunks(share)
                .map(|pictures| {
                    let network = self.network.share();
                    scope.spawn(move || histograms(&network, pictures))
                })
                .collect();
            let join = |worker: thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|_| Err(NetworkError::Torch("an unknown panic".to_owned())))
            };
            workers.into_iter().map(join).collect::<Result<Vec<_>, _>>()
        })?;
        for (name, histogram) in seen.into_iter().flatten() {
            self.seen.entry(name).or_default().merge(histogram);
        }
        Ok(())
    }

    /// The scales that fit what was seen.
    #[must_use]
    pub fn scales(&self) -> Scales {
        let scale = |(name, range): (String, _)| {
            let steps = Quantization::steps(range);
            let clip = self.seen.get(&name).and_then(|seen| seen.clip(steps));
            // Where nothing but zeros was seen, any scale does.
            let scale = clip.map_or(1.0, |clip| clip / f64::from(steps));
            (name, scale as f32)
        };
        Scales(activations().into_iter().map(scale).collect())
    }
}

/// What one thread sees of its pictures.
fn histograms(network: &Ssd300, pictures: &[u8]) -> Result<Histograms, NetworkError> {
    tch::set_num_threads(1);
    let mut seen = Histograms::new();
    for batch in pictures.chunks(BATCH * FRAME_BYTES) {
        network.observe(batch, &mut |name, values| {
            seen.entry(name.to_owned()).or_default().add(values);
        })?;
    }
    Ok(seen)
}
