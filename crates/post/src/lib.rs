//! The back of the house: what was found becomes something to look at and something to compute with.
//!
//! [`render`] draws on a segment's pictures ([`draw`]) and encodes them; [`assemble`] joins the segments and
//! writes the detections ([`common::outputs`]). Drawing and writing are plain functions of their input: the same
//! detections and settings give the same pixels and the same bytes on every machine.
//!
//! Never in here: tensors, uploads, pages. FFmpeg is reached through `media` only, and only in its child
//! processes.

pub mod args;
pub mod assemble;
pub mod draw;
pub mod merge;
pub mod render;
pub mod service;

pub use assemble::{AssembleStage, AssembleTask};
pub use render::{RenderStage, RenderTask};
