//! What users of the detector would notice.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod api;
mod checkpoint;
mod convert;
mod detector;
mod golden;
mod grown;
mod int8;
mod torch_file;
mod weights;
