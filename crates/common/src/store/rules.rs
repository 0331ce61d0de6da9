//! What happens to one piece of work (a segment, or a job's own stage), as pure functions: every
//! implementation of the store reads a document, applies one of these and writes it back, fenced.

use serde::{Deserialize, Serialize};

use super::{
    Callback, ClaimRequest, Counts, Job, MAX_EXPIRIES, MAX_FAILURES, MAX_SEND_BACKS, NewJob, Output, Setback,
    StoreError,
};
use crate::clock::Stamp;
use crate::job::{Event, ModelKey, Plan, Refusal, Timeline};
use crate::segment::{Cut, LeaseRecord, Segment, SegmentFiles, Stage, State, Token};

/// What the store remembers of a piece of work beyond what it shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Book {
    /// The last advance, so that its repetition is known.
    pub last: Option<Advance>,
    /// Times it was sent back, in this run.
    pub sent_back: u32,
    /// Who failed at it last, and until when somebody else is preferred.
    pub avoid: Option<Avoid>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Advance {
    pub token: Token,
    pub stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Avoid {
    pub worker: String,
    pub until: Stamp,
}

/// A segment's document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SegmentDoc {
    pub segment: Segment,
    pub book: Book,
    /// Its turn, within its priority.
    pub rank: i64,
}

/// A job's document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct JobDoc {
    pub job: Job,
    pub book: Book,
    pub claimed: FirstClaims,
}

/// Which stages of a job were ever claimed: what the START stamps are derived from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FirstClaims {
    pub index: bool,
    pub detect: bool,
    pub render: bool,
}

impl JobDoc {
    /// A job created at `now`: it waits for index.
    pub(super) fn new(new: NewJob, now: Stamp) -> Self {
        let NewJob { id, filename, source, settings, priority, callback_url } = new;
        let job = Job {
            id,
            filename,
            source,
            settings,
            plan: None,
            summary: None,
            timeline: Timeline::new(now),
            run: 0,
            state: State::Waiting(Stage::Index),
            priority,
            failures: 0,
            expiries: 0,
            not_before: None,
            lease: None,
            deleted: None,
            callback: callback_url.map(Callback::new),
        };
        Self { job, book: Book::default(), claimed: FirstClaims::default() }
    }

    /// Records what `stage`, held by `token`, made of the job, and puts the job before what comes next.
    pub(super) fn record(&mut self, token: &Token, stage: Stage, output: Output) -> Result<(), StoreError> {
        match (stage, output) {
            (Stage::Index, Output::Indexed(plan)) => {
                self.piece().move_on(token, stage, State::Segments);
                self.job.plan = Some(plan);
            }
            (Stage::Assemble, Output::Assembled(summary)) => {
                self.piece().move_on(token, stage, State::Done);
                self.job.summary = Some(summary);
            }
            _ => return Err(does_not_fit(stage)),
        }
        Ok(())
    }
}

impl SegmentDoc {
    /// Segment `index` of the job, as it is put: not to be claimed yet.
    pub(super) fn held(job: &Job, index: u32, cut: Cut) -> Self {
        let segment = Segment {
            job: job.id,
            run: job.run,
            index,
            first: cut.first,
            last: cut.last,
            state: State::Held,
            files: SegmentFiles::default(),
            failures: 0,
            expiries: 0,
            not_before: None,
            lease: None,
        };
        Self { segment, book: Book::default(), rank: 0 }
    }
}

/// An output that `stage` cannot have made.
pub(super) fn does_not_fit(stage: Stage) -> StoreError {
    StoreError::Corrupt(format!("the output of stage {stage} is another stage's"))
}

/// A plan that doesn't fit what was put would make a video with frames missing.
pub(super) fn check_plan(plan: &Plan, put: u32) -> Result<(), StoreError> {
    if plan.segments == 0 || plan.segments != put {
        return Err(StoreError::Corrupt(format!("the plan has {} segments, {put} were put", plan.segments)));
    }
    Ok(())
}

/// Whether a piece of work goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It does.
    GoesOn,
    /// It is given up, and its job with it; the sentence is for the user.
    GivenUp { stage: Stage, reason: String },
}

/// The parts that a segment's and a job's document have in common.
pub(super) struct Piece<'a> {
    pub name: String,
    pub state: &'a mut State,
    pub failures: &'a mut u32,
    pub expiries: &'a mut u32,
    pub not_before: &'a mut Option<Stamp>,
    pub lease: &'a mut Option<LeaseRecord>,
    pub book: &'a mut Book,
}

impl SegmentDoc {
    pub(super) fn piece(&mut self) -> Piece<'_> {
        let Self { segment, book, .. } = self;
        Piece {
            name: format!("frames {} to {}", segment.first, segment.last),
            state: &mut segment.state,
            failures: &mut segment.failures,
            expiries: &mut segment.expiries,
            not_before: &mut segment.not_before,
            lease: &mut segment.lease,
            book,
        }
    }

    /// Forgets what `stage` and those after it made.
    pub(super) fn forget_from(&mut self, stage: Stage) {
        let files = &mut self.segment.files;
        if stage <= Stage::Render {
            files.encoded.clear();
        }
        if stage <= Stage::Detect {
            files.detections = None;
        }
        if stage <= Stage::Decode {
            files.pack = None;
            files.concealed.clear();
        }
    }

    /// Sends the segment back to be made again from stage `to`, unless that was done too often.
    pub(super) fn send_back(&mut self, to: Stage, message: &str) -> Verdict {
        // Detect reads the pack, which is deleted once detect is done.
        let to = if to == Stage::Detect && self.segment.files.pack.is_none() { Stage::Decode } else { to };
        let mut piece = self.piece();
        piece.book.sent_back += 1;
        if piece.book.sent_back > MAX_SEND_BACKS {
            let reason = format!(
                "What {to} made of {} was lost or damaged {} times ({message}). Check the disk, then retry the job.",
                piece.name, piece.book.sent_back
            );
            return piece.give_up(to, reason);
        }
        piece.start(State::Waiting(to));
        self.forget_from(to);
        Verdict::GoesOn
    }
}

impl JobDoc {
    pub(super) fn piece(&mut self) -> Piece<'_> {
        let Self { job, book, .. } = self;
        Piece {
            name: "the video".to_owned(),
            state: &mut job.state,
            failures: &mut job.failures,
            expiries: &mut job.expiries,
            not_before: &mut job.not_before,
            lease: &mut job.lease,
            book,
        }
    }

    /// Sends the whole job back to index, unless that was done too often.
    pub(super) fn send_back(&mut self, message: &str) -> Verdict {
        let mut piece = self.piece();
        piece.book.sent_back += 1;
        if piece.book.sent_back > MAX_SEND_BACKS {
            let reason = format!(
                "The frame index was lost or damaged {} times ({message}). Check the disk, then retry the job.",
                piece.book.sent_back
            );
            return piece.give_up(Stage::Index, reason);
        }
        piece.start(State::Waiting(Stage::Index));
        self.job.plan = None;
        Verdict::GoesOn
    }

    /// Puts the whole job before its index, to be made with another model.
    pub(super) fn remodel(&mut self, model: ModelKey) {
        self.job.state = State::Waiting(Stage::Index);
        self.job.plan = None;
        self.job.settings.model = model;
    }

    /// Notes a claim. True when that is news.
    pub(super) fn note_claim(&mut self, stage: Stage) -> bool {
        let flag = match stage {
            Stage::Index => &mut self.claimed.index,
            Stage::Detect => &mut self.claimed.detect,
            Stage::Render => &mut self.claimed.render,
            Stage::Decode | Stage::Assemble => return false,
        };
        !std::mem::replace(flag, true)
    }
}

impl Piece<'_> {
    /// Puts the work before a new stage: nothing was tried yet, nobody is at it.
    pub(super) fn start(&mut self, state: State) {
        *self.state = state;
        *self.failures = 0;
        *self.expiries = 0;
        *self.not_before = None;
        *self.lease = None;
        self.book.avoid = None;
    }

    /// Records an advance and puts the work before what comes next.
    pub(super) fn move_on(&mut self, token: &Token, stage: Stage, next: State) {
        self.start(next);
        self.book.last = Some(Advance { token: token.clone(), stage });
    }

    /// Starts the work anew: in the stage where it stood, or the one that gave it up.
    pub(super) fn again(&mut self) {
        let state = match &*self.state {
            State::Failed { stage, .. } => State::Waiting(*stage),
            state => state.clone(),
        };
        self.start(state);
        self.book.sent_back = 0;
    }

    pub(super) fn give_up(&mut self, stage: Stage, reason: String) -> Verdict {
        *self.state = State::Failed { stage, reason: reason.clone() };
        *self.not_before = None;
        *self.lease = None;
        self.book.avoid = None;
        Verdict::GivenUp { stage, reason }
    }

    pub(super) fn held_by(&self, token: &Token) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.token == *token)
    }

    /// Whether `token` has advanced `stage` already.
    pub(super) fn advanced_by(&self, token: &Token, stage: Stage) -> bool {
        self.book.last.as_ref().is_some_and(|last| last.token == *token && last.stage == stage)
    }

    /// Which try a claim now is.
    pub(super) fn attempt(&self) -> u32 {
        *self.failures + *self.expiries + 1
    }

    /// Takes the lease. What lies there expired has cost an attempt: its holder said nothing.
    pub(super) fn take(&mut self, request: &ClaimRequest, now: Stamp) -> Verdict {
        if self.lease.take().is_some() {
            *self.expiries += 1;
        }
        *self.not_before = None;
        *self.lease = Some(LeaseRecord {
            worker: request.worker.clone(),
            token: request.token.clone(),
            expires: now.after(request.lease),
        });
        self.bear_silence(request.stage)
    }

    /// Gives the work up if too many leases of it expired silently, the one before the present claim included.
    pub(super) fn bear_silence(&mut self, stage: Stage) -> Verdict {
        if *self.expiries < MAX_EXPIRIES {
            return Verdict::GoesOn;
        }
        let reason = format!(
            "The {stage} stage stopped {} times without a word at {}: its worker was killed or hung each time. Look \
             at the workers' memory and logs, then retry the job.",
            self.expiries, self.name
        );
        self.give_up(stage, reason)
    }

    /// Gives the lease up. ([`Setback::SendBack`] changes more than this piece, and is not for here.)
    pub(super) fn set_back(&mut self, stage: Stage, setback: Setback, now: Stamp) -> Verdict {
        let holder = self.lease.take().map(|lease| lease.worker);
        match setback {
            Setback::HandBack => Verdict::GoesOn,
            Setback::Fail { message } => self.give_up(stage, message),
            Setback::Retry { message, backoff } => {
                *self.failures += 1;
                if *self.failures >= MAX_FAILURES {
                    return self.give_up(stage, message);
                }
                *self.not_before = Some(now.after(backoff));
                // Others get a head start of one more backoff; then anybody will do, or a worker that is
                // alone would wait for ever.
                self.book.avoid =
                    holder.map(|worker| Avoid { worker, until: now.after(backoff.saturating_mul(2)) });
                Verdict::GoesOn
            }
            Setback::SendBack { message, .. } => {
                let backoff = std::time::Duration::ZERO;
                self.set_back(stage, Setback::Retry { message, backoff }, now)
            }
        }
    }
}

/// A model as it is searched by.
pub(super) fn model_text(model: &ModelKey) -> String {
    format!("{}/{}", model.digest, model.precision)
}

/// A state as it is searched and counted by.
pub(super) fn state_text(state: &State) -> &'static str {
    match state {
        State::Held => "held",
        State::Waiting(stage) => stage.as_str(),
        State::Segments => "segments",
        State::Done => "done",
        State::Failed { .. } => "failed",
    }
}

/// The timeline with every stamp that the segments bear out.
pub(super) fn derive(doc: &JobDoc, counts: &Counts, now: Stamp) -> Timeline {
    let cut = doc.job.plan.is_some() && counts.total() > 0 && counts.held == 0 && counts.failed == 0;
    let decoded = cut && counts.decode == 0;
    let detected = decoded && counts.detect == 0;
    let events = [
        (doc.claimed.index, Event::PreprocessingStarted),
        (decoded, Event::PreprocessingEnded),
        (doc.claimed.detect, Event::InferenceStarted),
        (detected, Event::InferenceEnded),
        (doc.claimed.render, Event::PostprocessingStarted),
        (doc.job.state == State::Done, Event::PostprocessingEnded),
    ];
    events
        .into_iter()
        .filter(|(borne_out, _)| *borne_out)
        .fold(doc.job.timeline.clone(), |timeline, (_, event)| timeline.apply(event, now).unwrap_or(timeline))
}

/// Whether an event is in the timeline already.
pub(super) fn is_stamped(timeline: &Timeline, event: Event) -> bool {
    timeline.apply(event, timeline.process_start) == Err(Refusal::Repeat)
}
