//! Clearing up: jobs that are over, jobs that were deleted, files that nothing names.
//!
//! Nobody is ever surprised: what a worker may still hold or read is left for two leases, and files are judged by the
//! volume's own clock.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use common::files::{Entry, Kind};
use common::input::blocking;
use common::job::JobId;
use common::segment::Segment;
use common::store::{Job, UPLOAD_KEPT, Upload, UploadState};
use tracing::{info, warn};

use crate::app::App;
use crate::args::Retention;
use crate::duty::Duty;
use crate::{api, metrics};

/// Jobs whose time is over that are marked in one go, and uploads that are looked after.
const BATCH: u32 = 200;

/// The one who clears up, and what it need not look at again.
#[derive(Debug, Default)]
pub struct Sweeper {
    /// Jobs that ended and left nothing lying about.
    clean: HashSet<JobId>,
}

/// Clears up again and again until [`common::service::Service::stop`]; one process at a time does.
pub(crate) async fn run(app: App) {
    let pause = (app.service.lease() * 2).clamp(Duration::from_secs(5), Duration::from_secs(60));
    let mut duty = Duty::new(app.service.store.clone(), "sweep", app.service.worker.clone(), pause * 3);
    let mut sweeper = Sweeper::default();
    while app.service.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let swept = match duty.mine().await {
            Ok(true) => app.service.stop.run_until_cancelled(sweeper.sweep(&app)).await,
            Ok(false) => continue,
            Err(error) => Some(Err(error.into())),
        };
        match swept {
            Some(Ok(0)) | None => {}
            Some(Ok(gone)) => info!("cleared {gone} jobs and files away"),
            Some(Err(error)) => warn!("clearing up failed, and is tried again: {error:#}"),
        }
    }
    duty.release().await;
}

impl Sweeper {
    /// Clears up once; how many jobs and files went.
    ///
    /// # Errors
    /// When the store does not answer or the volume cannot be read.
    pub async fn sweep(&mut self, app: &App) -> Result<usize> {
        let patience = app.service.lease() * 2;
        if let Retention::For(time) = app.settings.retention {
            for id in app.store().ended(time, BATCH).await? {
                app.store().tombstone(id).await?;
            }
        }
        let mut gone = 0;
        let unsettled = app.store().unsettled().await?;
        for id in &unsettled {
            self.clean.remove(id);
            gone += usize::from(remove_deleted(app, *id, patience).await?);
        }
        for upload in app.store().due_uploads(BATCH).await? {
            gone += usize::from(look_after(app, &upload).await?);
        }
        let volume = app.volume().clone();
        let (entries, now) = blocking(move || Ok((volume.entries()?, volume.now()?)))
            .await
            .context("the volume cannot be read")?;
        let age = |entry: &Entry| now.duration_since(entry.modified).unwrap_or_default();
        for entry in entries {
            let over = match &entry.kind {
                Kind::Job(id) | Kind::Upload(id) if self.clean.contains(id) => false,
                Kind::Job(id) => match app.store().job(*id).await? {
                    None => age(&entry) >= patience,
                    Some(job) if job.deleted.is_some() => false,
                    Some(job) => {
                        gone += self.sweep_job(app, &job, now, patience).await?;
                        false
                    }
                },
                Kind::Upload(id) => age(&entry) >= UPLOAD_KEPT && app.store().job(*id).await?.is_none(),
                Kind::Partial(id) => age(&entry) >= UPLOAD_KEPT && app.store().upload(*id).await?.is_none(),
                Kind::UploadDraft => age(&entry) >= UPLOAD_KEPT,
                Kind::Draft | Kind::Intermediate(_) => age(&entry) >= patience,
            };
            if over {
                gone += usize::from(remove(entry.path).await?);
            }
        }
        Ok(gone)
    }

    /// Removes what lies in the folder of a job and is named by nothing.
    async fn sweep_job(
        &mut self,
        app: &App,
        job: &Job,
        now: SystemTime,
        patience: Duration,
    ) -> Result<usize> {
        let ended = match job.timeline.process_end {
            Some(end) => app.store().now().await?.since(end) >= patience,
            None => false,
        };
        let folder = app.volume().job(job.id);
        // Listed before the documents are read: a file that is named meanwhile is not taken for a leftover.
        let found = blocking(move || {
            let mut found = folder.intermediates()?;
            if ended {
                found.extend(folder.drafts()?);
            }
            Ok(found)
        })
        .await
        .with_context(|| format!("the folder of job {} cannot be read", job.id))?;
        let old: Vec<Entry> = found
            .into_iter()
            .filter(|entry| now.duration_since(entry.modified).unwrap_or_default() >= patience)
            .collect();
        let mut gone = 0;
        if !old.is_empty() {
            let Some(job) = app.store().job(job.id).await? else { return Ok(0) };
            let wanted = Wanted::of(&job, &app.store().segments(job.id).await?);
            for entry in old.into_iter().filter(|entry| !wanted.keeps(entry)) {
                gone += usize::from(remove(entry.path).await?);
            }
        }
        if ended {
            self.clean.insert(job.id);
        }
        Ok(gone)
    }
}

/// What documents name, or may be about to.
struct Wanted {
    names: HashSet<String>,
    tokens: Vec<String>,
}

impl Wanted {
    fn of(job: &Job, segments: &[Segment]) -> Self {
        let mut names = HashSet::new();
        if let Some(plan) = &job.plan {
            names.insert(plan.index.name.clone());
            names.extend(plan.mezzanine.iter().map(|file| file.name.clone()));
        }
        for segment in segments {
            let files = &segment.files;
            names.extend(files.pack.iter().chain(&files.detections).map(|file| file.name.clone()));
            names.extend(files.encoded.iter().map(|(_, file)| file.name.clone()));
        }
        // A lease that has lapsed may still be kept, if the store did not answer for a while.
        let leases = segments.iter().filter_map(|segment| segment.lease.as_ref()).chain(&job.lease);
        Self { names, tokens: leases.map(|lease| lease.token.to_string()).collect() }
    }

    fn keeps(&self, entry: &Entry) -> bool {
        match &entry.kind {
            Kind::Intermediate(name) => {
                self.names.contains(name) || self.tokens.iter().any(|token| name.contains(token.as_str()))
            }
            _ => false,
        }
    }
}

/// Makes the job of a whole upload whose pre came no further; removes one that has expired.
async fn look_after(app: &App, upload: &Upload) -> Result<bool> {
    if upload.state == UploadState::Whole {
        match api::make_job(app, upload.id).await {
            Ok(_) => return Ok(false),
            Err(error) => warn!("upload {} does not become a job yet: {}", upload.id, error.message()),
        }
    }
    if !app.store().remove_upload(upload.id).await? {
        return Ok(false);
    }
    if !upload.is_whole() {
        app.metrics.uploaded(metrics::Upload::Refused);
    }
    remove(app.volume().partial(upload.id)).await
}

/// Removes a job that was deleted, once nobody can be at work on it.
async fn remove_deleted(app: &App, id: JobId, patience: Duration) -> Result<bool> {
    let Some(job) = app.store().job(id).await? else { return Ok(false) };
    let Some(deleted) = job.deleted else { return Ok(false) };
    if app.store().now().await?.since(deleted) < patience {
        return Ok(false);
    }
    remove(app.volume().job(id).path().to_owned()).await?;
    remove(app.volume().upload(id)).await?;
    app.store().remove(id).await?;
    Ok(true)
}

/// Removes a file or folder; false when it is not there.
async fn remove(path: PathBuf) -> Result<bool> {
    let shown = path.display().to_string();
    blocking(move || remove_any(&path)).await.with_context(|| format!("{shown} cannot be removed"))
}

fn remove_any(path: &Path) -> io::Result<bool> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
