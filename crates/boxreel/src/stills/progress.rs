//! Progress over pictures: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(10);

/// What the user sees while pictures are detected.
pub struct Progress {
    mode: Mode,
    total: u64,
    before: AtomicU64,
}

enum Mode {
    Silent,
    Plain(Mutex<Instant>),
    Bar(ProgressBar),
}

impl Progress {
    /// Over `total` pictures, on standard error, or silent.
    pub fn new(shown: bool, total: usize) -> Self {
        let total = total as u64;
        let mode = if !shown {
            Mode::Silent
        } else if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} pictures  {per_sec}  {eta} left")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("━╸─");
            Mode::Bar(ProgressBar::new(total).with_style(style))
        } else {
            Mode::Plain(Mutex::new(Instant::now()))
        };
        Self { mode, total, before: AtomicU64::new(0) }
    }

    /// Prints a line of text.
    pub fn say(&self, text: &str) {
        match &self.mode {
            Mode::Silent => {}
            Mode::Plain(_) => eprintln!("{text}"),
            Mode::Bar(bar) => bar.println(text),
        }
    }

    /// `done` pictures of the present chunk are done.
    pub fn within_chunk(&self, done: u64) {
        let done = self.before.load(Ordering::Relaxed) + done;
        match &self.mode {
            Mode::Silent => {}
            Mode::Plain(last) => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() >= LINE_EVERY {
                    eprintln!("{done}/{} pictures", self.total);
                    *last = Instant::now();
                }
            }
            Mode::Bar(bar) => bar.set_position(done),
        }
    }

    /// A chunk of `pictures` is done.
    pub fn chunk_done(&self, pictures: usize) {
        self.before.fetch_add(pictures as u64, Ordering::Relaxed);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Mode::Bar(bar) = &self.mode {
            bar.finish_and_clear();
        }
    }
}
