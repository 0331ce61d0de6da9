//! `infer`: finds objects in the frames of every job. See `infer --help`.

use std::process::ExitCode;

use clap::Parser;
use common::service::program;
use infer::args::InferArgs;
use infer::service;

fn main() -> ExitCode {
    program::answer_health_check(service::PORT);
    program::check_environment();
    let args = InferArgs::parse();
    let ended = program::run("infer", &args.service.logs.clone(), async |stop| {
        let model = args.model.clone();
        // Before the store: whoever cannot compute need not ask for work.
        let detector = tokio::task::spawn_blocking(move || service::load(&model)).await??;
        let service = program::service("infer", &args.service, &args.cluster, stop).await?;
        service::run(args, service, detector).await
    });
    // A batch may still be in the network.
    infer::skip_destructors();
    ended
}
