//! Segments, stages, leases: the unit of work and the proof of holding it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::files::{Encoding, FileRecord};
use crate::job::{ErrorCode, JobId};

/// A piece of work that is claimed. `Index` and `Assemble` are claimed on a job, the others on a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Read packets, make the frame index, cut.
    Index,
    /// Decode a segment into its pack.
    Decode,
    /// Find objects in a pack.
    Detect,
    /// Draw and encode a segment.
    Render,
    /// Join the segments.
    Assemble,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 5] = [Self::Index, Self::Decode, Self::Detect, Self::Render, Self::Assemble];

    /// The name in documents and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Decode => "decode",
            Self::Detect => "detect",
            Self::Render => "render",
            Self::Assemble => "assemble",
        }
    }

    /// The code a job ends with when this stage fails for good.
    #[must_use]
    pub fn error_code(self) -> ErrorCode {
        match self {
            Self::Index | Self::Decode => ErrorCode::FrameConvertError,
            Self::Detect => ErrorCode::InferenceError,
            Self::Render | Self::Assemble => ErrorCode::PostprocessingError,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A fencing token: 16 random bytes a claimer chose, written as 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token(String);

impl Token {
    /// A new token.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Said when a text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a token is 32 hexadecimal digits")]
pub struct InvalidToken;

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidToken)
        }
    }
}

impl TryFrom<String> for Token {
    type Error = InvalidToken;

    fn try_from(text: String) -> Result<Self, InvalidToken> {
        text.parse()
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.0
    }
}

/// What a lease is held on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// The job itself (index, assemble).
    Job(JobId),
    /// Segment `1` of job `0`.
    Segment(JobId, u32),
}

impl Target {
    /// The job it belongs to.
    #[must_use]
    pub fn job(self) -> JobId {
        match self {
            Self::Job(job) | Self::Segment(job, _) => job,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(job) => write!(f, "{job}"),
            Self::Segment(job, segment) => write!(f, "{job}/{segment}"),
        }
    }
}

/// Proof that its holder, and nobody else, may finish a piece of work. Not `Clone`: finishing consumes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    /// What is held.
    pub target: Target,
    /// The stage it is held for.
    pub stage: Stage,
    /// The job's run when it was claimed.
    pub run: u32,
    /// The fencing token.
    pub token: Token,
    /// Which try this is, from 1.
    pub attempt: u32,
}

/// The lease as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Who holds it.
    pub worker: String,
    /// The fencing token.
    pub token: Token,
    /// By the store's clock.
    pub expires: Stamp,
}

/// Where a piece of work stands, for a segment and for the job-level stages alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not to be claimed yet: index has not released the segments.
    Held,
    /// Waits for this stage, or is in it when a live lease is held.
    Waiting(Stage),
    /// (Jobs only) the segments are on their way.
    Segments,
    /// Nothing left to do.
    Done,
    /// Given up.
    Failed {
        /// The stage that gave up.
        stage: Stage,
        /// One sentence.
        reason: String,
    },
}

/// A run of consecutive frames, the unit of sharing work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// The job it belongs to.
    pub job: JobId,
    /// The job's run it belongs to.
    pub run: u32,
    /// Position in the job, from 0.
    pub index: u32,
    /// First frame.
    pub first: u32,
    /// Last frame, included.
    pub last: u32,
    /// Where it stands.
    pub state: State,
    /// What its stages made.
    pub files: SegmentFiles,
    /// Failures reported in this stage so far.
    pub failures: u32,
    /// Leases that expired silently in this stage so far.
    pub expiries: u32,
    /// Not claimable before, by the store's clock.
    pub not_before: Option<Stamp>,
    /// The live or expired lease.
    pub lease: Option<LeaseRecord>,
}

impl Segment {
    /// Frames in it.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.last - self.first + 1
    }
}

/// Files a segment's document names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SegmentFiles {
    /// Made by decode, gone after detect.
    pub pack: Option<FileRecord>,
    /// Frames (numbers in the video) that decode could not decode.
    pub concealed: Vec<u32>,
    /// Made by detect.
    pub detections: Option<FileRecord>,
    /// Made by render.
    pub encoded: Vec<(Encoding, FileRecord)>,
}

/// A segment as index cuts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// First frame.
    pub first: u32,
    /// Last frame, included.
    pub last: u32,
}
