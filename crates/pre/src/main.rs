//! `pre`: the front of the house. See `pre --help`.

use std::process::ExitCode;

use clap::Parser;
use common::service::{Service, program};
use pre::PreArgs;

fn main() -> ExitCode {
    pre::children().serve_if_child();
    program::check_environment();
    let args = PreArgs::parse();
    program::run("pre", &args.service.logs.clone(), async |stop| {
        let store = program::connect(&args.cluster).await?;
        let service = Service::new("pre", &args.service, store, program::volume(&args.cluster)?, stop);
        pre::serve(&args, service).await
    })
}
