//! `pre scale` and `post scale` against a real Kubernetes API server, where BOXREEL_TEST_KUBECONFIG names one (as its
//! administrator: every test makes a namespace of its own there, and removes it), and where there is none.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod cluster;
mod namespace;
mod no_cluster;

use clap::Parser;
use scale::{Cluster, Command, ScaleArgs};

/// A program that scales.
#[derive(Parser)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

fn args(words: &[&str]) -> ScaleArgs {
    let Command::Scale(args) = Program::try_parse_from(["pre", "scale"].iter().chain(words)).unwrap().command;
    args
}

/// What `scale` with these words writes; or the sentence it ends with.
async fn run(cluster: &Cluster, words: &[&str]) -> Result<String, String> {
    let mut out = Vec::new();
    let done = scale::command::execute(cluster, &args(words), &mut out).await;
    let written = String::from_utf8(out).unwrap();
    done.map(|()| written).map_err(|error| format!("{error:#}"))
}
