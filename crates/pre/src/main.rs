//! `pre`: the front of the house. See `pre --help`.

use std::process::ExitCode;

use clap::Parser;
use common::service::program;
use pre::PreArgs;

fn main() -> ExitCode {
    pre::children().serve_if_child();
    program::answer_health_check(pre::PORT);
    program::check_environment();
    let args = PreArgs::parse();
    if let Some(command) = &args.command {
        return command.run();
    }
    program::run("pre", &args.service.logs.clone(), async |stop| {
        let service = program::service("pre", &args.service, &args.cluster, stop).await?;
        pre::serve(&args, service).await
    })
}
