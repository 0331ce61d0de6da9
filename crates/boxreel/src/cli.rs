//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use infer::{DeviceChoice, PrecisionChoice};

use crate::serve::ServeArgs;

/// Finds and names objects in videos.
#[derive(Debug, Parser)]
#[command(name = "boxreel", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Box and name every object in videos: writes annotated copies, and the detections as data.
    Detect(DetectArgs),
    /// Serve the web pages and the REST interface, all in one process.
    Serve(Box<ServeArgs>),
    /// Measure how well a model finds the objects that are marked in pictures: COCO's AP and AR.
    Eval(EvalArgs),
    /// Make weights ready for --precision int8: measures the network's activations on pictures, which need no
    /// annotations, and writes the weights again with what they come to.
    Calibrate(CalibrateArgs),
}

/// Arguments of `boxreel detect`.
#[derive(Debug, Args)]
pub struct DetectArgs {
    /// Videos: files, folders (their video files, not those of subfolders) or glob patterns.
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<String>,

    /// Folder for the results. When it exists, a number is added: predict2, predict3, …
    #[arg(long, value_name = "DIR", default_value = "runs/detect/predict")]
    pub out: PathBuf,

    /// Write into the folder of --out although it exists; results of the same name are replaced.
    #[arg(long)]
    pub exist_ok: bool,

    /// Draw, count and write to txt only detections of at least this score (0 to 1). The JSON and the CSV hold all
    /// from 0.05 up, so that the threshold can be chosen again later.
    #[arg(long, default_value_t = 0.3, value_parser = fraction)]
    pub conf: f32,

    /// Of two boxes of one class that overlap more than this (intersection over union, 0 to 1), drop the weaker.
    #[arg(long, default_value_t = 0.5, value_parser = fraction)]
    pub iou: f32,

    /// The most detections to keep per frame.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_det: u32,

    /// Draw, count and write to txt only these classes, by name, separated by commas: person,car.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub classes: Vec<String>,

    /// Detect each Nth frame and hold the boxes between: for long videos on slow machines.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub every: u32,

    /// Where the network runs: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,

    /// Arithmetic of the network: auto, fp32, bf16, fp16 or int8. auto takes what the processor is built for; int8 is the
    /// quickest on a CPU and needs weights that `boxreel calibrate` wrote.
    #[arg(long, default_value = "auto")]
    pub precision: PrecisionChoice,

    /// Frames the network takes at once. Default: what suits the device.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch: Option<u32>,

    /// Weights (safetensors, or a file of torch.save). Default: the weights that came with Boxreel.
    #[arg(long, value_name = "PATH", env = "BOXREEL_MODEL")]
    pub model: Option<PathBuf>,

    /// Also write txts/infer{n}.txt, the detections of each frame as text.
    #[arg(long)]
    pub save_txt: bool,

    /// Also keep every frame as a picture: src_frame/frame_{n}.jpg as it came, tar_frame/tar_{n}.jpg with boxes.
    #[arg(long)]
    pub save_frames: bool,

    /// Make no annotated video, only data.
    #[arg(long)]
    pub no_video: bool,

    /// Make no AVI beside the MP4.
    #[arg(long)]
    pub no_avi: bool,

    /// How many segments are read and drawn at once. Default: one per processor core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub jobs: Option<u32>,

    /// Print one machine-readable summary (JSON) to standard output.
    #[arg(long)]
    pub json: bool,

    /// Print nothing but errors.
    #[arg(long, short)]
    pub quiet: bool,
}

/// Arguments of `boxreel eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Folder of the pictures (JPEG, PNG or WebP), under the file names that the annotations give.
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,

    /// What is in the pictures: a COCO instances file (JSON). Classes are matched by name.
    #[arg(long, value_name = "FILE")]
    pub annotations: PathBuf,

    /// Weights (safetensors, or a file of torch.save). Default: the weights that came with Boxreel.
    #[arg(long, value_name = "PATH", env = "BOXREEL_MODEL")]
    pub model: Option<PathBuf>,

    /// Where the network runs: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,

    /// Arithmetic of the network: auto, fp32, bf16, fp16 or int8. auto takes what the processor is built for; int8 is the
    /// quickest on a CPU and needs weights that `boxreel calibrate` wrote.
    #[arg(long, default_value = "auto")]
    pub precision: PrecisionChoice,

    /// Only the first N pictures, by their id in the annotations.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,

    /// Also write the detections to this file, as COCO results (JSON), which pycocotools reads.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,

    /// Print no progress.
    #[arg(long, short)]
    pub quiet: bool,
}

/// Arguments of `boxreel calibrate`.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Folder of pictures (JPEG, PNG or WebP) such as the network is to work on; a hundred or more are best.
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,

    /// Only N pictures, spread evenly over the folder's, by name.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,

    /// Weights (safetensors, or a file of torch.save). Default: the weights that came with Boxreel.
    #[arg(long, value_name = "PATH", env = "BOXREEL_MODEL")]
    pub model: Option<PathBuf>,

    /// The file to write: the same weights, as safetensors, ready for int8.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Print no progress.
    #[arg(long, short)]
    pub quiet: bool,
}

fn fraction(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("give a number from 0 to 1".to_owned()),
    }
}
