//! What every room of Boxreel shares: the job and its timeline, segments and their leases, the store
//! they live in, the names of files on the volume, and the one claim-work-advance loop.
//!
//! Never in here: tensors, FFmpeg, Kubernetes, templates. A clock is read in [`clock`] only, a path on
//! the volume is spelt in [`files`] only, and only the modules under [`store`] know a database.

pub mod clock;
pub mod config;
pub mod detection;
pub mod files;
pub mod http_error;
pub mod input;
pub mod job;
pub mod labels;
pub mod meter;
pub mod metrics;
pub mod outputs;
pub mod pack;
pub mod segment;
pub mod service;
pub mod store;
pub mod timeline;
pub mod worker;
