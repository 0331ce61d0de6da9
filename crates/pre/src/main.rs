//! `pre`: the front of the house. See `pre --help`.

use std::process::ExitCode;

use clap::Parser;
use common::config::{check_environment, environment_names};
use common::service::telemetry;
use pre::PreArgs;

fn main() -> ExitCode {
    pre::children().serve_if_child();
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pre: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn start() -> anyhow::Result<()> {
    check_environment(environment_names())?;
    let args = PreArgs::parse();
    let _telemetry = telemetry::init("pre", &args.service.logs)?;
    pre::serve(&args).await
}
