//! Progress of the run: a bar per stage on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use common::job::{Failure, JobId};
use common::segment::Stage;
use common::store::{Counts, Job, StoreError};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::pipeline::Pipeline;
use crate::run_folder::Video;

/// The stages that work frame by frame, as users know them.
const STAGES: [Stage; 3] = [Stage::Decode, Stage::Detect, Stage::Render];
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What the user sees while the run goes on.
pub struct Display {
    mode: Mode,
    jobs: Mutex<HashMap<JobId, Seen>>,
}

enum Mode {
    Silent,
    Plain(Mutex<Lines>),
    // The bars appear with the first known frame: a bar of nothing would look complete.
    Bars { all: MultiProgress, bars: OnceLock<[ProgressBar; 3]> },
}

struct Lines {
    last: Instant,
    // Frames detected when the last line was printed, for the rate.
    detected: u64,
}

/// What is known of one job's frames.
#[derive(Default)]
struct Seen {
    frames: u64,
    // Frames each stage had done before this process began, and has done altogether.
    before: [u64; 3],
    done: [u64; 3],
}

impl Display {
    /// How often the display moves on when nothing else happens.
    pub const INTERVAL: Duration = Duration::from_millis(250);

    /// A display on standard error, or a silent one.
    pub fn new(shown: bool) -> Self {
        let mode = if !shown {
            Mode::Silent
        } else if std::io::stderr().is_terminal() {
            Mode::Bars { all: MultiProgress::new(), bars: OnceLock::new() }
        } else {
            Mode::Plain(Mutex::new(Lines { last: Instant::now(), detected: 0 }))
        };
        Self { mode, jobs: Mutex::default() }
    }

    /// Prints a line of text above the bars.
    pub fn say(&self, text: &str) {
        match &self.mode {
            Mode::Silent => {}
            Mode::Plain(_) => eprintln!("{text}"),
            Mode::Bars { all, .. } => {
                // A terminal that cannot be written to has nobody to tell.
                let _ = all.println(text);
            }
        }
    }

    /// Takes in what the stages have done for one job.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn show(&self, job: &Job, pipeline: &Pipeline) -> Result<(), StoreError> {
        let Some(plan) = job.plan.as_ref().filter(|_| !matches!(self.mode, Mode::Silent)) else {
            return Ok(());
        };
        let frames = u64::from(plan.frames);
        let known = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&job.id);
        let before =
            if known { None } else { Some(done_before(pipeline.store.counts(job.id).await?, frames)) };
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = jobs.entry(job.id).or_default();
        seen.frames = frames;
        let ticked = STAGES.map(|stage| pipeline.meter.get(job.id, stage));
        if let Some(before) = before {
            // What this process ticked until now is in the counts, or will be.
            seen.before = [0, 1, 2].map(|i| before[i].saturating_sub(ticked[i]));
        }
        let ended = job.timeline.postprocessing_end.is_some();
        seen.done = [0, 1, 2].map(|i| if ended { frames } else { (seen.before[i] + ticked[i]).min(frames) });
        Ok(())
    }

    /// Draws what was taken in.
    pub fn draw(&self) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let total: u64 = jobs.values().map(|seen| seen.frames).sum();
        let done = [0, 1, 2].map(|i| jobs.values().map(|seen| seen.done[i]).sum::<u64>());
        match &self.mode {
            Mode::Silent => {}
            Mode::Bars { .. } if total == 0 => {}
            Mode::Bars { all, bars } => {
                let bars = bars.get_or_init(|| STAGES.map(|stage| all.add(bar(stage, total))));
                for (bar, done) in bars.iter().zip(done) {
                    bar.set_length(total);
                    bar.set_position(done);
                }
            }
            Mode::Plain(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                let elapsed = lines.last.elapsed();
                if total == 0 || elapsed < LINE_EVERY {
                    return;
                }
                #[expect(clippy::cast_precision_loss, reason = "a rate to one decimal")]
                let rate = done[1].saturating_sub(lines.detected) as f64 / elapsed.as_secs_f64();
                let left = eta(total - done[1], rate);
                eprintln!(
                    "decode {}/{total}  detect {}/{total} ({rate:.1} fps{left})  render {}/{total}",
                    done[0], done[1], done[2]
                );
                *lines = Lines { last: Instant::now(), detected: done[1] };
            }
        }
    }

    /// Tells that a video has ended.
    pub fn ended(&self, video: &Video, failure: Option<&Failure>) {
        if failure.is_some() {
            self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&video.job);
        }
        self.say(&format!("{}: {}", video.folder, if failure.is_some() { "failed" } else { "done" }));
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        if let Mode::Bars { all, bars } = &self.mode {
            bars.get().into_iter().flatten().for_each(ProgressBar::finish_and_clear);
            let _ = all.clear();
        }
    }
}

fn bar(stage: Stage, frames: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>7} {bar:40} {pos}/{len} frames  {per_sec}  {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .with_key("per_sec", |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{:.1} fps", state.per_sec());
            })
            .progress_chars("━╸─");
    ProgressBar::new(frames).with_style(style).with_prefix(stage.as_str())
}

/// Frames each stage had done, judged by where the segments stand.
fn done_before(counts: Counts, frames: u64) -> [u64; 3] {
    let Counts { held, decode, detect, render, done, failed } = counts;
    let segments = u64::from(held + decode + detect + render + done + failed).max(1);
    [detect + render + done, render + done, done].map(|past| frames * u64::from(past) / segments)
}

fn eta(frames: u64, rate: f64) -> String {
    if rate <= 0.0 {
        return String::new();
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate"
    )]
    let seconds = (frames as f64 / rate) as u64;
    format!(", {}:{:02} left", seconds / 60, seconds % 60)
}
