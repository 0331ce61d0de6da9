//! What the pages show of a job.

use std::ops::Deref;
use std::time::Duration;

use common::clock::Stamp;
use common::job::Timeline;
use common::segment::{Segment, State};
use serde_json::json;

use crate::api::JobView;

/// A job with what the pages make of it.
pub(super) struct JobModel(JobView);

impl Deref for JobModel {
    type Target = JobView;

    fn deref(&self) -> &JobView {
        &self.0
    }
}

impl JobModel {
    pub(super) fn new(job: JobView) -> Self {
        Self(job)
    }

    /// The original's lines: what, and when.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let times = &self.timeline;
        let shown = |time: &str| time.replacen('T', " ", 1).trim_end_matches('Z').to_owned();
        let stamp = |stamp: &Option<String>| stamp.as_deref().map_or("WAITING..".to_owned(), shown);
        vec![
            ("process start time", shown(&times.process_start)),
            ("preprocessing start time", stamp(&times.preprocessing_start)),
            ("preprocessing end time", stamp(&times.preprocessing_end)),
            ("inferencing start time", stamp(&times.inference_start)),
            ("inferencing end time", stamp(&times.inference_end)),
            ("postprocessing start time", stamp(&times.postprocessing_start)),
            ("postprocessing end time", stamp(&times.postprocessing_end)),
            ("total duration time", stamp(&times.total)),
        ]
    }

    /// What the status means to a reader, which is also its look.
    pub(super) fn mood(&self) -> &'static str {
        match self.status {
            "POSTPROCESSING_COMPLETE" => "good",
            "CANCELLED" => "off",
            "ENQUEUE" => "idle",
            _ if self.is_final => "bad",
            _ => "busy",
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.mood() == "good"
    }

    pub(super) fn can_be_retried(&self) -> bool {
        matches!(self.mood(), "bad" | "off")
    }

    pub(super) fn percent(&self) -> u32 {
        percent(self.progress.overall)
    }

    /// Stages with what is done of each.
    pub(super) fn stages(&self) -> [(&'static str, u32); 3] {
        [
            ("Reading", percent(self.progress.decode)),
            ("Detecting", percent(self.progress.detect)),
            ("Drawing", percent(self.progress.render)),
        ]
    }

    /// About how long it may still take; empty where nobody knows.
    pub(super) fn time_left(&self) -> String {
        match self.eta_seconds {
            Some(0) | None => String::new(),
            Some(seconds) => format!("about {} left", span(Duration::from_secs(seconds))),
        }
    }

    /// The name of the annotated AVI: the upload's, with the ending that is true.
    pub(super) fn avi_name(&self) -> String {
        format!("{}.avi", self.stem())
    }

    pub(super) fn mp4_name(&self) -> String {
        format!("{}.mp4", self.stem())
    }

    fn stem(&self) -> &str {
        match self.filename.rsplit_once('.') {
            Some((stem, _)) if !stem.is_empty() => stem,
            _ => &self.filename,
        }
    }

    pub(super) fn size_text(&self) -> String {
        bytes(self.size)
    }

    /// What is known of the video and of what was asked for, in a line.
    pub(super) fn facts(&self) -> String {
        let mut facts = vec![bytes(self.size)];
        if let (Some(width), Some(height)) = (self.width, self.height) {
            facts.push(format!("{width}×{height}"));
        }
        if let Some(frames) = self.frames {
            facts.push(format!("{frames} frames"));
        }
        if let Some(summary) = &self.summary {
            facts.push(span(Duration::from_secs_f64(summary.duration_seconds.max(0.0))));
        }
        facts.push(format!("score from {}", self.options.conf));
        if self.options.every > 1 {
            facts.push(format!("each {}th frame detected", self.options.every));
        }
        if !self.options.classes.is_empty() {
            facts.push(format!("only {}", self.options.classes.join(", ")));
        }
        facts.push(self.options.precision.clone());
        facts.join(" · ")
    }

    /// Classes that are drawn, as JSON; empty: all.
    pub(super) fn drawn_classes(&self) -> String {
        json!(self.options.classes).to_string()
    }
}

fn percent(fraction: f64) -> u32 {
    // Not 100 before it is done.
    (fraction * 100.0).floor().clamp(0.0, 100.0) as u32
}

/// Bytes for people.
pub(super) fn bytes(count: u64) -> String {
    let mut size = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            let digits = usize::from(unit != "B" && size < 10.0);
            return format!("{size:.digits$} {unit}");
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

/// A time for people: 0.8 s, 12 s, 3 min 5 s, 2 h 10 min.
fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// When the stages were at work, over a line of 1000 units from the upload to the end or to now.
pub(super) struct Chart {
    pub bars: Vec<Bar>,
    pub total: String,
}

pub(super) struct Bar {
    pub label: &'static str,
    pub class: &'static str,
    pub x: u32,
    pub width: u32,
    pub said: String,
}

impl Chart {
    pub(super) fn of(timeline: &Timeline, now: Stamp) -> Self {
        let begin = timeline.process_start;
        let end = timeline.process_end.unwrap_or(now);
        let all = end.since(begin).as_secs_f64().max(1e-6);
        let at = |stamp: Stamp| ((stamp.since(begin).as_secs_f64() / all).min(1.0) * 1000.0).round() as u32;
        let stages = [
            ("Preprocessing", "pre", timeline.preprocessing_start, timeline.preprocessing_end),
            ("Inference", "infer", timeline.inference_start, timeline.inference_end),
            ("Postprocessing", "post", timeline.postprocessing_start, timeline.postprocessing_end),
        ];
        let bars = stages.into_iter().map(|(label, class, from, to)| {
            let (x, width, said) = match from {
                Some(from) => {
                    let until = to.unwrap_or(end);
                    let length = span(until.since(from));
                    let more = if to.or(timeline.process_end).is_some() { "" } else { "…" };
                    (at(from), at(until).saturating_sub(at(from)).max(2), format!("{length}{more}"))
                }
                None => (0, 0, "–".to_owned()),
            };
            Bar { label, class, x: x.min(998), width, said }
        });
        Self { bars: bars.collect(), total: span(end.since(begin)) }
    }
}

/// A segment as a square.
pub(super) struct Piece {
    pub class: &'static str,
    pub said: String,
}

impl Piece {
    pub(super) fn of(segment: &Segment, now: Stamp) -> Self {
        use common::segment::Stage::{Assemble, Decode, Detect, Index, Render};
        let held = segment.lease.as_ref().is_some_and(|lease| lease.expires > now);
        let (class, what) = match (&segment.state, held) {
            (State::Held, _) => ("waits", "waits"),
            (State::Waiting(Index | Decode), false) => ("waits", "waits to be read"),
            (State::Waiting(Index | Decode), true) => ("pre work", "is being read"),
            (State::Waiting(Detect), false) => ("pre", "is read"),
            (State::Waiting(Detect), true) => ("infer work", "is being detected"),
            (State::Waiting(Render), false) => ("infer", "is detected"),
            (State::Waiting(Render | Assemble), true) => ("post work", "is being drawn"),
            (State::Waiting(Assemble) | State::Segments | State::Done, _) => ("post", "is done"),
            (State::Failed { .. }, _) => ("failed", "failed"),
        };
        Self { class, said: format!("frames {} to {}: {what}", segment.first, segment.last) }
    }
}

/// The colour each class is drawn in, as JSON: names and colours, in the model's order.
pub(super) fn colours(names: &[String]) -> String {
    let classes = names.iter().zip(0..).map(|(name, class)| {
        let draw::palette::Rgb { r, g, b } = draw::palette::class_color(class);
        json!([name, format!("#{r:02x}{g:02x}{b:02x}")])
    });
    serde_json::Value::Array(classes.collect()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_said_as_people_say_them() {
        assert_eq!(
            [0, 900, 2048, 50 << 20, 16 << 30].map(bytes),
            ["0 B", "900 B", "2.0 KiB", "50 MiB", "16 GiB"]
        );
        assert_eq!(
            [0.84, 12.2, 185.0, 7800.0].map(|s| span(Duration::from_secs_f64(s))),
            ["0.8 s", "12 s", "3 min 5 s", "2 h 10 min"]
        );
    }

    #[test]
    fn overlapping_stages_are_drawn_overlapping() {
        let at = |seconds: i64| Some(Stamp(seconds * 1_000_000));
        let timeline = Timeline {
            preprocessing_start: at(10),
            preprocessing_end: at(60),
            inference_start: at(30),
            ..Timeline::new(Stamp(0))
        };
        let chart = Chart::of(&timeline, Stamp(100_000_000));
        let bars: Vec<(u32, u32)> = chart.bars.iter().map(|bar| (bar.x, bar.width)).collect();
        assert_eq!(bars, [(100, 500), (300, 700), (0, 0)]);
        assert_eq!(chart.bars[1].said, "1 min 10 s…");
    }
}
