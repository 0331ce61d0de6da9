//! The one-process program: `boxreel detect` starts the stages of `pre`, `infer` and `post` on one SQLite store.
//!
//! Never in here: a stage's work, or a second way of doing one. What the services do, this program does by the
//! same code.

mod calibrate;
pub mod cli;
mod detect;
mod eval;
mod export;
pub mod pipeline;
mod progress;
mod report;
mod run_folder;
pub mod serve;
mod sources;
mod stills;

use std::io::IsTerminal;
use std::process::ExitCode;

use common::service::program;
use media::child::Registry;

/// What this program does when it is started as a child of itself.
#[must_use]
pub fn children() -> Registry {
    Registry::new()
        .with::<pre::IndexTask>()
        .with::<pre::DecodeTask>()
        .with::<post::RenderTask>()
        .with::<post::AssembleTask>()
}

/// Runs a command to its end. Exit codes: 0 all well, 1 something failed, 2 wrong usage, 130 interrupted.
#[must_use]
pub fn run(cli: cli::Cli) -> ExitCode {
    let ended = match cli.command {
        cli::Command::Detect(arguments) => command(|| detect::run(arguments)),
        cli::Command::Eval(arguments) => command(|| eval::run(arguments)),
        cli::Command::Calibrate(arguments) => command(|| calibrate::run(arguments)),
        cli::Command::Serve(arguments) => {
            program::check_environment();
            program::run("boxreel", &arguments.service.logs.clone(), |stop| serve::run(arguments, stop))
        }
    };
    // A batch may still be in the network.
    infer::skip_destructors();
    ended
}

fn command<F: Future<Output = anyhow::Result<ExitCode>>>(run: impl FnOnce() -> F) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BOXREEL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(run());
            // A batch still in the network may take seconds; nothing waits for its result any more.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(anyhow::anyhow!("Cannot start: {error}")),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("boxreel: {error:#}");
        ExitCode::FAILURE
    })
}
