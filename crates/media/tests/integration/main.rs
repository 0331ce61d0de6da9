//! What a user of this crate relies on, tried on real files that FFmpeg makes.

mod read;
mod write;
