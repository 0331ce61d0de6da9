//! `post`: draws what was found and joins the result. See `post --help`.

use std::process::ExitCode;

use clap::Parser;
use common::service::program;
use post::args::PostArgs;
use post::service;

fn main() -> ExitCode {
    service::children().serve_if_child();
    program::answer_health_check(service::PORT);
    program::check_environment();
    let args = PostArgs::parse();
    if let Some(command) = &args.command {
        return command.run();
    }
    program::run("post", &args.service.logs.clone(), async |stop| {
        let service = program::service("post", &args.service, &args.cluster, stop).await?;
        service::run(args, service).await
    })
}
