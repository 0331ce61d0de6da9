//! `post`: draws what was found and joins the result. See `post --help`.

use std::process::ExitCode;

use clap::Parser;
use common::service::{Service, program};
use post::args::PostArgs;
use post::service;

fn main() -> ExitCode {
    service::children().serve_if_child();
    program::check_environment();
    let args = PostArgs::parse();
    program::run("post", &args.service.logs.clone(), async |stop| {
        let store = program::connect(&args.cluster).await?;
        let service = Service::new("post", &args.service, store, program::volume(&args.cluster)?, stop);
        service::run(args, service).await
    })
}
