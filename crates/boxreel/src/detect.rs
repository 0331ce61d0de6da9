//! `boxreel detect`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use common::clock::{Clock, SystemClock};
use common::files::trouble;
use common::job::{Ended, ErrorCode, Failure, JobId, Settings};
use common::segment::Stage;
use common::service::Interrupts;
use common::store::{Job, NewJob};
use infer::{Detector, DetectorSettings, ModelFile};

use crate::cli::DetectArgs;
use crate::export::{self, Exported};
use crate::pipeline::Pipeline;
use crate::progress::Display;
use crate::report::{self, Outcome, Report};
use crate::run_folder::{Run, RunFolder, Video};
use crate::sources::{self, SourceFile};

const USAGE: u8 = 2;
const INTERRUPTED: u8 = 130;

/// Runs the command.
///
/// # Errors
/// What keeps the whole run from going on; a single video's failure is reported instead.
pub async fn run(arguments: DetectArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let (files, unusable) = sources::resolve(&arguments.sources);
    report::unusable(&unusable);
    if files.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let model = match &arguments.model {
        Some(path) => path.clone(),
        None => infer::weights::default_path()?,
    };
    let model = ModelFile::open(&model)?;
    let classes = match class_indices(&arguments.classes, &model.names) {
        Ok(classes) => classes,
        Err(message) => {
            eprintln!("boxreel: {message}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let detector = Detector::start(
        &model,
        &DetectorSettings {
            device: arguments.device,
            precision: arguments.precision,
            batch: arguments.batch.map(|n| n as usize),
            threads: None,
        },
    )?;
    let settings = settings(&arguments, classes, &detector);
    // From here on there is something to be left in order.
    let interrupts = Interrupts::listen();
    let folder = RunFolder::take(&arguments.out, arguments.exist_ok, plan_run(settings, &files))?;
    let display = Display::new(!arguments.quiet && !arguments.json);
    if folder.resumed {
        display.say(&format!("Continuing the unfinished run in {}", folder.path.display()));
    }
    display.say(&detector.describe());

    let outcome = work(&folder, detector, &arguments, &display, interrupts).await;
    display.finish();
    let outcomes = match outcome {
        Ok(Some(outcomes)) => outcomes,
        Ok(None) => {
            eprintln!("boxreel: interrupted; the same command continues in {}", folder.path.display());
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Err(error) => {
            let error = anyhow!(
                "The run in {} had to be given up ({error:#}); free some space there or check the disk, then start it \
                 again.",
                folder.path.display()
            );
            // What an earlier, interrupted run had done may still be continued.
            if !folder.resumed
                && let Err(error) = folder.finish()
            {
                tracing::warn!(%error, "the run's temporary files could not be removed");
            }
            return Err(error);
        }
    };
    let report =
        Report { out: folder.path.clone(), seconds: started.elapsed().as_secs_f64(), outcomes, unusable };
    if arguments.json {
        println!("{}", report.json());
    } else if !arguments.quiet {
        report.print();
    }
    report.print_failures();
    if report.outcomes.iter().any(|outcome| outcome.waiting) {
        // Only their last step is missing, so they are kept for the next try.
        eprintln!("boxreel: the same command puts what is finished in its place");
        return Ok(ExitCode::FAILURE);
    }
    folder.finish().context("Cannot remove the run's temporary files")?;
    Ok(if report.all_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Does all videos of the run; `None` when interrupted.
async fn work(
    folder: &RunFolder,
    detector: Detector,
    arguments: &DetectArgs,
    display: &Display,
    interrupts: Interrupts,
) -> Result<Option<Vec<Outcome>>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let slots = arguments.jobs.map_or(cores, |jobs| jobs as usize);
    export::sweep(&folder.state());
    let pipeline = Pipeline::start(&folder.state(), detector, slots).await?;
    let done = tokio::select! {
        done = follow(folder, &pipeline, display) => Some(done),
        () = interrupts.first() => None,
    };
    pipeline.stop().await;
    export::sweep(&folder.state());
    done.transpose()
}

/// Creates the run's jobs and follows them until each has ended and its results are in place.
async fn follow(folder: &RunFolder, pipeline: &Pipeline, display: &Display) -> Result<Vec<Outcome>> {
    for video in &folder.run.videos {
        if pipeline.store.job(video.job).await?.is_none() {
            pipeline.volume.job(video.job).create().context("Cannot write in the run's folder")?;
            pipeline.store.create_job(new_job(video, &folder.run.settings)).await?;
        }
    }
    pipeline.hints.notify(Stage::Index);
    let mut outcomes: Vec<Option<Outcome>> = folder.run.videos.iter().map(|_| None).collect();
    let mut changed = pipeline.hints.watch();
    loop {
        for (video, outcome) in folder.run.videos.iter().zip(&mut outcomes) {
            if outcome.is_some() {
                continue;
            }
            let Some(job) = pipeline.store.job(video.job).await? else { continue };
            display.show(&job, pipeline).await?;
            if job.timeline.status().is_final() {
                *outcome = Some(end(folder, video, job, pipeline, display));
            }
        }
        display.draw();
        pipeline.check_store()?;
        if outcomes.iter().all(Option::is_some) {
            return Ok(outcomes.into_iter().flatten().collect());
        }
        // Between changes, the display moves on by what the stages tick.
        let _ = tokio::time::timeout(Display::INTERVAL, changed.changed()).await;
    }
}

fn end(folder: &RunFolder, video: &Video, job: Job, pipeline: &Pipeline, display: &Display) -> Outcome {
    let made = pipeline.volume.job(video.job);
    let mut failure = match &job.timeline.ended {
        Some(Ended::Failed(failure)) => Some(failure.clone()),
        Some(Ended::Cancelled) | None => None,
    };
    let (mut results, mut waiting) = (Exported::default(), false);
    if failure.is_none() {
        let place = folder.path.join(&video.folder);
        match export::publish(&made, &place, &video.folder, &folder.state()) {
            Ok(exported) => results = exported,
            Err(error) => {
                let message = trouble(&format!("put the results into {}", place.display()), &error);
                failure = Some(Failure { code: ErrorCode::PostprocessingError, message });
                waiting = true;
            }
        }
    } else {
        export::discard(&made);
    }
    display.ended(video, failure.as_ref());
    Outcome { video: video.clone(), job, failure, results, waiting }
}

fn settings(arguments: &DetectArgs, classes: Vec<u16>, detector: &Detector) -> Settings {
    Settings {
        conf: arguments.conf,
        iou: arguments.iou,
        max_det: arguments.max_det,
        classes,
        every: arguments.every,
        keep_frames: arguments.save_frames,
        save_txt: arguments.save_txt,
        mp4: !arguments.no_video,
        avi: !arguments.no_video && !arguments.no_avi,
        names: detector.names().to_vec(),
        model: detector.key().clone(),
    }
}

fn plan_run(settings: Settings, files: &[SourceFile]) -> Run {
    let now = SystemClock.now();
    let videos = files.iter().zip(sources::folder_names(files));
    let videos =
        videos.map(|(file, folder)| Video { source: file.clone(), folder, job: JobId::new(now) }).collect();
    Run { settings, videos }
}

fn new_job(video: &Video, settings: &Settings) -> NewJob {
    NewJob {
        id: video.job,
        filename: video.source.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        source: common::job::Source { path: video.source.path.clone(), size: video.source.size },
        settings: settings.clone(),
        priority: 0,
        callback_url: None,
    }
}

/// The indices of the classes named on the command line.
fn class_indices(wanted: &[String], names: &[String]) -> Result<Vec<u16>, String> {
    let mut indices = Vec::new();
    for class in wanted.iter().map(|class| class.trim()).filter(|class| !class.is_empty()) {
        let index = names.iter().position(|name| name.eq_ignore_ascii_case(class));
        let index = index
            .and_then(|index| u16::try_from(index).ok())
            .ok_or_else(|| format!("The model knows no class {class:?}; it knows: {}.", names.join(", ")))?;
        if !indices.contains(&index) {
            indices.push(index);
        }
    }
    indices.sort_unstable();
    Ok(indices)
}
