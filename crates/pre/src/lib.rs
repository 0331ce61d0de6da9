//! The front of the house: the pages, the REST interface, uploads, the stages that read a video (index, decode), the
//! reconciler that keeps every job's timeline true to its segments, and the duties of the house (callbacks,
//! removing what is over, jobs whose model is gone).
//!
//! Never in here: tensors, drawing, encoding. FFmpeg is reached through `media` only, and only in its
//! child processes; no HTTP handler waits for it.

mod api;
pub mod app;
pub mod args;
pub mod callbacks;
pub mod decode;
mod duty;
pub mod index;
mod metrics;
pub mod models;
mod pages;
pub mod reconcile;
pub mod replicas;
pub mod sweep;

pub use app::{App, children, duties, router, run, serve, stages};
pub use args::{PORT, PreArgs, PreSettings, Retention};
pub use decode::{DecodeStage, DecodeTask};
pub use index::{IndexStage, IndexTask};
pub use replicas::Scaling;
