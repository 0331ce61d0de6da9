//! Settings of the service.

use std::path::PathBuf;

use clap::Parser;
use common::config::{ClusterArgs, ServiceArgs};

use crate::detector::DetectorSettings;
use crate::device::{DeviceChoice, PrecisionChoice};

/// Finds objects: works on the detect stage of every job, and answers single pictures at /v1/detect.
#[derive(Debug, Clone, Parser)]
#[command(name = "infer", version, about)]
pub struct InferArgs {
    /// What every service has.
    #[command(flatten)]
    pub service: ServiceArgs,

    /// Where the services meet.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// The network.
    #[command(flatten)]
    pub model: ModelArgs,

    /// Where pre is, to report to: http://host:port. Without it pre finds out by itself, a little later.
    #[arg(long, env = "BOXREEL_PRE_URL", value_name = "URL")]
    pub pre_url: Option<String>,
}

/// Which network runs, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArgs {
    /// Weights. Default: those that came with Boxreel.
    #[arg(long, env = "BOXREEL_MODEL", value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// Where the network runs: auto, cpu, cuda or cuda:N.
    #[arg(long, env = "BOXREEL_DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Arithmetic of the network: auto, fp32, bf16, fp16 or int8. auto takes what the processor is built for; int8 is the
    /// quickest on a CPU and needs weights that `boxreel calibrate` wrote.
    #[arg(long, env = "BOXREEL_PRECISION", default_value = "auto")]
    pub precision: PrecisionChoice,

    /// Frames the network takes at once. Default: what suits the device.
    #[arg(long, env = "BOXREEL_BATCH", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch: Option<u32>,

    /// Threads of the network on a CPU. Default: one for each core.
    #[arg(long, env = "BOXREEL_THREADS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
}

impl ModelArgs {
    /// What the detector is started with.
    #[must_use]
    pub fn settings(&self) -> DetectorSettings {
        DetectorSettings {
            device: self.device,
            precision: self.precision,
            batch: self.batch.map(|n| n as usize),
            threads: self.threads.map(|n| n as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_variable_is_on_the_list() {
        assert_eq!(common::config::unlisted(&InferArgs::command()), Vec::<String>::new());
    }
}
