//! FFmpeg, and nothing else: probing, the frame index, exact decoding of segments, encoding, joining.
//!
//! Everything that touches a stranger's file runs in a child process ([`child`]): the program itself,
//! executed again, fenced in, and killed when it hangs. Pixels stay in files or inside the child; only
//! small messages cross. Never in here: jobs, stores, names on the volume, what is drawn ([`stage`] is the one
//! seam to the worker loop).

mod av;
pub mod child;
pub mod decode;
pub mod encode;
pub mod error;
pub mod index;
mod input;
pub mod join;
pub mod packets;
pub mod picture;
pub mod probe;
pub mod stage;

pub use error::MediaError;
