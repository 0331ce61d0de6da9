//! What a run tells at its end: a table for people, JSON for programs, a sentence for each failure.

use std::path::PathBuf;

use comfy_table::{CellAlignment, Table, presets};
use common::job::{Failure, Timeline};
use common::store::Job;
use serde_json::{Value, json};

use crate::export::Exported;
use crate::run_folder::Video;
use crate::sources::Unusable;

/// How one video ended.
pub struct Outcome {
    /// The video.
    pub video: Video,
    /// Its job, as it ended.
    pub job: Job,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// What it left.
    pub results: Exported,
    /// Whether it is finished and only waits to be put in its place.
    pub waiting: bool,
}

/// How the run ended.
pub struct Report {
    /// The run's folder.
    pub out: PathBuf,
    /// Seconds from start to end.
    pub seconds: f64,
    /// The videos, in order.
    pub outcomes: Vec<Outcome>,
    /// Sources that were no file.
    pub unusable: Vec<Unusable>,
}

impl Report {
    /// Whether everything that was asked for is there.
    pub fn all_well(&self) -> bool {
        self.unusable.is_empty() && self.outcomes.iter().all(|outcome| outcome.failure.is_none())
    }

    /// Prints the closing table.
    pub fn print(&self) {
        let mut table = Table::new();
        table
            .load_style(presets::UTF8_HORIZONTAL_ONLY)
            .set_header(["video", "frames", "objects", "class", "time", "fps"]);
        for index in [1, 2, 4, 5] {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for outcome in self.outcomes.iter().filter(|outcome| outcome.failure.is_none()) {
            let Some(summary) = &outcome.job.summary else { continue };
            let seconds = total_seconds(&outcome.job.timeline);
            let classes: Vec<_> = summary.counts.iter().map(|(name, _)| name.as_str()).collect();
            let counts: Vec<_> = summary.counts.iter().map(|(_, count)| count.to_string()).collect();
            table.add_row([
                outcome.video.folder.clone(),
                summary.frames.to_string(),
                if counts.is_empty() { "0".to_owned() } else { counts.join("\n") },
                if classes.is_empty() { "nothing found".to_owned() } else { classes.join("\n") },
                format!("{seconds:.1} s"),
                format!("{:.1}", f64::from(summary.frames) / seconds.max(1e-9)),
            ]);
        }
        if table.row_count() > 0 {
            println!("{table}");
        }
        for outcome in &self.outcomes {
            for note in outcome.job.summary.iter().flat_map(|summary| &summary.notes) {
                println!("{}: {note}", outcome.video.folder);
            }
            if let Some(folder) = &outcome.results.folder {
                println!("{} is in {}", outcome.video.folder, folder.display());
            }
        }
    }

    /// Prints one sentence for each video that failed.
    pub fn print_failures(&self) {
        for outcome in &self.outcomes {
            if let Some(failure) = &outcome.failure {
                eprintln!("boxreel: {}: {}", outcome.video.source.path.display(), failure.message);
            }
        }
    }

    /// The machine-readable summary: times in seconds, `stages` from each stage's first claim to its last end.
    pub fn json(&self) -> Value {
        let sources: Vec<_> = self.outcomes.iter().map(outcome_json).collect();
        let unusable: Vec<_> = self
            .unusable
            .iter()
            .map(|one| json!({ "source": one.source, "status": "NOT_FOUND", "error": { "message": one.message } }))
            .collect();
        json!({
            "out": self.out,
            "seconds": round(self.seconds),
            "model": self.outcomes.first().map(|outcome| &outcome.job.settings.model),
            "sources": sources.into_iter().chain(unusable).collect::<Vec<_>>(),
        })
    }
}

fn outcome_json(outcome: &Outcome) -> Value {
    let timeline = &outcome.job.timeline;
    let span = |start: Option<common::clock::Stamp>, end: Option<common::clock::Stamp>| {
        Some(round(end?.since(start?).as_secs_f64()))
    };
    let seconds = total_seconds(timeline);
    let mut value = json!({
        "source": outcome.video.source.path,
        "folder": outcome.results.folder,
        "mp4": outcome.results.mp4,
        "avi": outcome.results.avi,
        "status": outcome.failure.as_ref().map_or(timeline.status(), |failure| failure.code.into()).as_str(),
        "seconds": round(seconds),
        "stages": {
            "preprocessing": span(timeline.preprocessing_start, timeline.preprocessing_end),
            "inference": span(timeline.inference_start, timeline.inference_end),
            "postprocessing": span(timeline.postprocessing_start, timeline.postprocessing_end),
        },
    });
    if let Some(summary) = &outcome.job.summary {
        value["frames"] = json!(summary.frames);
        value["duration"] = json!(round(summary.duration));
        value["frames_per_second"] = json!(round(f64::from(summary.frames) / seconds.max(1e-9)));
        value["counts"] = summary.counts.iter().map(|(name, count)| (name.clone(), json!(count))).collect();
        value["concealed_frames"] = json!(summary.concealed);
        value["notes"] = json!(summary.notes);
    }
    if let Some(failure) = &outcome.failure {
        value["error"] = json!({ "code": failure.code, "message": failure.message });
    }
    value
}

fn total_seconds(timeline: &Timeline) -> f64 {
    timeline.total().map_or(0.0, |total| total.as_secs_f64())
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Prints one sentence for each source that was no file.
pub fn unusable(unusable: &[Unusable]) {
    for one in unusable {
        eprintln!("boxreel: {}: {}", one.source, one.message);
    }
}
