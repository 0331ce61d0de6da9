//! `boxreel eval`: the real detector over still pictures, measured by COCO's metric.

mod score;
mod truth;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use common::detection::Detection;
use common::files::publish_bytes;
use hotcoco::Annotation;
use infer::{Detector, DetectorSettings, Frames, ModelFile, NmsOptions, weights};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cli::EvalArgs;
use crate::stills::{self, CHUNK, Progress};
use score::Score;
use truth::{Picture, Truth};

/// As `boxreel detect` suppresses, unless told otherwise.
const OPTIONS: NmsOptions = NmsOptions { iou: 0.5, max_det: 200 };

/// Runs the command.
///
/// # Errors
/// What keeps the figures from being had. A picture that is missing or damaged does: figures over the others
/// would be figures of something else.
pub async fn run(arguments: EvalArgs) -> Result<ExitCode> {
    let out = arguments.out.as_deref().map(writable).transpose()?;
    let truth = Truth::read(&arguments.annotations, &arguments.images, arguments.limit)?;
    let model = match &arguments.model {
        Some(path) => path.clone(),
        None => weights::default_path()?,
    };
    let model = ModelFile::open(&model)?;
    let categories = truth.categories_of(&model.names)?;
    let settings =
        DetectorSettings { device: arguments.device, precision: arguments.precision, ..Default::default() };
    let detector = tokio::task::spawn_blocking(move || Detector::start(&model, &settings)).await??;

    let progress = Progress::new(!arguments.quiet && !arguments.json, truth.pictures.len());
    progress.say(&detector.describe());
    for note in &categories.notes {
        progress.say(note);
    }
    let started = Instant::now();
    let results = detect(&detector, &truth, &categories.ids, &progress).await;
    progress.finish();
    let results = results?;
    let seconds = started.elapsed().as_secs_f64();

    if let Some(out) = out {
        publish_bytes(&out, &serde_json::to_vec(&coco_results(&results))?)
            .with_context(|| format!("Cannot write {}", out.display()))?;
    }
    let pictures = truth.pictures.len();
    let mut measured: Vec<u64> = categories.ids.into_iter().flatten().collect();
    measured.sort_unstable();
    measured.dedup();
    let ids = measured.clone();
    let report = Report {
        score: tokio::task::spawn_blocking(move || score::score(truth, results, ids)).await??,
        measured,
        pictures,
        pictures_per_second: pictures as f64 / seconds.max(1e-9),
        notes: categories.notes,
        detector,
    };
    if arguments.json {
        println!("{}", report.json());
    } else {
        report.print();
    }
    Ok(ExitCode::SUCCESS)
}

/// The absolute path of a file that is still to be written, in a folder that is there: better known before the
/// work than after it.
pub(crate) fn writable(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| format!("Cannot write {}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        bail!("The folder {} for --out does not exist; make it first.", folder.display());
    }
    if path.is_dir() {
        bail!("{} is a folder; name a file with --out.", path.display());
    }
    Ok(path)
}

/// Reads and detects all pictures; `ids` gives each class's category, if the annotations have it.
async fn detect(
    detector: &Detector,
    truth: &Truth,
    ids: &[Option<u64>],
    progress: &Progress,
) -> Result<Vec<Annotation>> {
    let (mut chunks, reader) = stills::ahead(truth.pictures.clone(), |picture| &picture.path, Picture::check);
    let cancel = CancellationToken::new();
    let mut results = Vec::new();
    for chunk in truth.pictures.chunks(CHUNK) {
        let Some(bytes) = chunks.recv().await else { break };
        let found = detector
            .detect(Frames::of_bytes(bytes?), OPTIONS, &cancel, &|done| progress.within_chunk(done))
            .await?;
        for (picture, detections) in chunk.iter().zip(&found) {
            results.extend(detections.iter().filter_map(|detection| {
                let category = (*ids.get(usize::from(detection.class))?)?;
                Some(result(picture, category, detection))
            }));
        }
        progress.chunk_done(chunk.len());
    }
    reader.await.context("Reading the pictures ended early")?;
    Ok(results)
}

/// A detection in the annotations' pixels. Rounded here, so that what is written is what is scored.
fn result(picture: &Picture, category: u64, detection: &Detection) -> Annotation {
    let hundredths = |fraction: f32, side: u32| (f64::from(fraction) * f64::from(side) * 100.0).round();
    let b = detection.bbox;
    let (x, y) = (hundredths(b.min_x, picture.width), hundredths(b.min_y, picture.height));
    let (right, bottom) = (hundredths(b.max_x, picture.width), hundredths(b.max_y, picture.height));
    Annotation {
        image_id: picture.id,
        category_id: category,
        bbox: Some([x, y, right - x, bottom - y].map(|value| value / 100.0)),
        score: Some((f64::from(detection.score) * 1e6).round() / 1e6),
        ..Annotation::default()
    }
}

/// COCO's results format: what `COCO.loadRes` reads.
fn coco_results(results: &[Annotation]) -> Vec<Value> {
    let one = |result: &Annotation| {
        json!({
            "image_id": result.image_id,
            "category_id": result.category_id,
            "bbox": result.bbox,
            "score": result.score,
        })
    };
    results.iter().map(one).collect()
}

struct Report {
    score: Score,
    /// The categories that it is of.
    measured: Vec<u64>,
    pictures: usize,
    pictures_per_second: f64,
    notes: Vec<String>,
    detector: Detector,
}

impl Report {
    /// A figure is null where the annotations hold nothing that it could be measured on.
    fn json(&self) -> Value {
        let Score { ap, ap50, ap75, ar, classes } = &self.score;
        let classes: Vec<_> = classes
            .iter()
            .map(|class| {
                json!({
                    "name": class.name,
                    "category_id": class.id,
                    "objects": class.objects,
                    "ap": class.ap,
                    "ap50": class.ap50,
                })
            })
            .collect();
        json!({
            "ap": ap,
            "ap50": ap50,
            "ap75": ap75,
            "ar": ar,
            "images": self.pictures,
            "images_per_second": (self.pictures_per_second * 100.0).round() / 100.0,
            "model": self.detector.key(),
            "category_ids": self.measured,
            "classes": classes,
            "notes": self.notes,
        })
    }

    fn print(&self) {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["class", "objects", "AP50", "AP"]);
        for index in 1..4 {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for class in &self.score.classes {
            table.add_row([
                class.name.clone(),
                class.objects.to_string(),
                figure(class.ap50),
                figure(class.ap),
            ]);
        }
        let Score { ap, ap50, ap75, ar, .. } = &self.score;
        println!("{table}");
        println!(
            "AP {}  AP50 {}  AP75 {}  AR {}  ({} pictures, {:.1} a second)",
            figure(*ap),
            figure(*ap50),
            figure(*ap75),
            figure(*ar),
            self.pictures,
            self.pictures_per_second
        );
    }
}

fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}
