//! `boxreel`: the whole pipeline as one program. See `boxreel --help`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    boxreel::children().serve_if_child();
    boxreel::run(boxreel::cli::Cli::parse())
}
