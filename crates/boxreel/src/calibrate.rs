//! `boxreel calibrate`: weights made ready for int8.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use common::files::publish_bytes;
use infer::calibration::Calibrator;
use infer::ssd300::FRAME_BYTES;
use infer::{ModelFile, weights};
use tokio::runtime::Handle;

use crate::cli::CalibrateArgs;
use crate::eval::writable;
use crate::stills::{self, Progress};

/// How the names of pictures end.
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Runs the command.
///
/// # Errors
/// What keeps the file from being written.
pub async fn run(arguments: CalibrateArgs) -> Result<ExitCode> {
    let out = writable(&arguments.out)?;
    let pictures = pictures(&arguments.images, arguments.limit)?;
    let path = match &arguments.model {
        Some(path) => path.clone(),
        None => weights::default_path()?,
    };
    tokio::task::spawn_blocking(move || {
        let model = ModelFile::open(&path)?;
        let progress = Progress::new(!arguments.quiet, pictures.len());
        let written = calibrated(&model, pictures, &progress).and_then(|bytes| {
            publish_bytes(&out, &bytes).with_context(|| format!("Cannot write {}", out.display()))
        });
        progress.finish();
        written?;
        progress.say(&format!("{} is ready for --precision int8", arguments.out.display()));
        Ok(ExitCode::SUCCESS)
    })
    .await?
}

/// The model's file with the scales that fit the pictures.
fn calibrated(model: &ModelFile, pictures: Vec<PathBuf>, progress: &Progress) -> Result<Vec<u8>> {
    let mut calibrator = Calibrator::start(model)?;
    let (mut chunks, reader) = stills::ahead(pictures, PathBuf::as_path, |_, _| Ok(()));
    while let Some(bytes) = chunks.blocking_recv() {
        let bytes = bytes?;
        calibrator.observe(&bytes)?;
        progress.chunk_done(bytes.len() / FRAME_BYTES);
        progress.within_chunk(0);
    }
    Handle::current().block_on(reader).context("Reading the pictures ended early")?;
    Ok(model.with_scales(&calibrator.scales())?)
}

/// The pictures in a folder, by name; `limit` of them, evenly spread.
fn pictures(folder: &Path, limit: Option<u32>) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("The folder {} can't be read", folder.display());
    if !folder.is_dir() {
        bail!("{} is no folder; name the folder of the pictures with --images.", folder.display());
    }
    let entries: Vec<_> = folder.read_dir().and_then(Iterator::collect).with_context(unreadable)?;
    let is_picture = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
        ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
    };
    let mut all: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).filter(is_picture).collect();
    if all.is_empty() {
        bail!("{} holds no pictures; give a folder of JPEG, PNG or WebP files.", folder.display());
    }
    all.sort();
    let wanted = limit.map_or(all.len(), |limit| all.len().min(limit as usize));
    Ok((0..wanted).map(|n| all[n * all.len() / wanted].clone()).collect())
}
