//! pre over HTTP, as its clients and workers meet it: the real router on a real store, on a free port.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod callbacks;
mod house;
mod jobs;
mod models;
mod others;
mod pages;
mod replicas;
mod results;
mod resumable;
mod scale;
mod sweep;
mod timeline;
mod uploads;
