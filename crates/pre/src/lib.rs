//! The front of the house: the stages that read a video (index, decode), and the reconciler that keeps
//! every job's timeline true to its segments.
//!
//! Never in here: tensors, drawing, encoding. FFmpeg is reached through `media` only, and only in its
//! child processes.

pub mod decode;
pub mod index;
pub mod reconcile;

pub use decode::{DecodeStage, DecodeTask};
pub use index::{IndexStage, IndexTask};
