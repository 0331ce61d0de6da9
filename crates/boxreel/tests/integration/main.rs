//! The program as a user runs it: real clips in, files out.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod bad_input;
mod calibrate;
mod deploy;
mod eval;
mod interrupted;
mod models;
mod results;
mod serve;
mod support;
