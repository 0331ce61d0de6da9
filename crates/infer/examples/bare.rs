//! The bare network in a loop: pictures a second for each number of threads and each batch size, as JSON.
//!
//! usage: bare MODEL.safetensors [--device D] [--precision P] [--threads 1,2] [--batch 1,4,8] [--seconds 5]

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use infer::ssd300::FRAME_BYTES;
use infer::{Detector, DetectorSettings, Frames, ModelFile, NmsOptions};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: bare MODEL.safetensors [--device D] [--precision P] …")?;
    let mut settings = DetectorSettings::default();
    let (mut threads, mut batches) = (vec![1, std::thread::available_parallelism()?.get()], vec![1, 4, 8]);
    let mut seconds = 5.0;
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--device" => settings.device = value.parse()?,
            "--precision" => settings.precision = value.parse()?,
            "--threads" => threads = list(&value)?,
            "--batch" => batches = list(&value)?,
            "--seconds" => seconds = value.parse()?,
            _ => return Err(format!("{name} is unknown").into()),
        }
    }
    let model = ModelFile::open(Path::new(&model))?;
    let mut rows = Vec::new();
    for &threads in &threads {
        for &batch in &batches {
            let settings =
                DetectorSettings { threads: Some(threads), batch: Some(batch), ..settings.clone() };
            let detector = Detector::start(&model, &settings)?;
            let each = batch * threads * 2;
            let pictures: Vec<u8> = (0..each * FRAME_BYTES).map(|i| (i * i / 7 % 251) as u8).collect();
            let frames = Frames::of_bytes(pictures);
            let (cancel, options) = (CancellationToken::new(), NmsOptions { iou: 0.5, max_det: 200 });
            // The first pass compiles kernels and touches memory.
            detector.detect(frames.clone(), options, &cancel, &|_| {}).await?;
            let (start, cpu) = (Instant::now(), cpu_seconds()?);
            let mut done = 0;
            while start.elapsed() < Duration::from_secs_f64(seconds) {
                detector.detect(frames.clone(), options, &cancel, &|_| {}).await?;
                done += each;
            }
            let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
            eprintln!("{}: {:.2} pictures/s", detector.describe(), done as f64 / wall);
            rows.push(serde_json::json!({
                "threads": threads,
                "batch": batch,
                "precision": detector.key().precision,
                "pictures_per_second": done as f64 / wall,
                "cpu_seconds_per_picture": cpu / done as f64,
            }));
        }
    }
    println!("{}", serde_json::Value::from(rows));
    Ok(())
}

fn list(text: &str) -> Result<Vec<usize>, std::num::ParseIntError> {
    text.split(',').map(str::parse).collect()
}

/// Processor time of this process: on a busy machine it says more than the clock on the wall.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    // Fields 14 and 15 of proc(5), user and system time, in ticks of 10 ms.
    Ok((ticks(11).ok_or("no utime")? + ticks(12).ok_or("no stime")?) / 100.0)
}
