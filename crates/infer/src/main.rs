//! `infer`: finds objects in the frames of every job. See `infer --help`.

use std::process::ExitCode;

use clap::Parser;
use common::service::{Service, program};
use infer::args::InferArgs;
use infer::service;

fn main() -> ExitCode {
    program::check_environment();
    let args = InferArgs::parse();
    program::run("infer", &args.service.logs.clone(), async |stop| {
        let model = args.model.clone();
        // Before the store: whoever cannot compute need not ask for work.
        let detector = tokio::task::spawn_blocking(move || service::load(&model)).await??;
        let store = program::connect(&args.cluster).await?;
        let service = Service::new("infer", &args.service, store, program::volume(&args.cluster)?, stop);
        service::run(args, service, detector).await
    })
}
