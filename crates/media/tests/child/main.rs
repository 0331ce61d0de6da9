//! The process boundary, with tasks that misbehave in every way a library may.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test without the harness is not known to be one"
)]

use std::process::ExitCode;

mod checks;
mod tasks;

fn main() -> ExitCode {
    tasks::registry().serve_if_child();
    if std::env::args().nth(1).as_deref() == Some(checks::ORPHAN_WORD) {
        checks::hold_a_hanging_child();
        return ExitCode::SUCCESS;
    }
    // Things a child must not inherit: a secret, and a file that survives an exec.
    // SAFETY: no other thread runs yet; the path is a C string and the descriptor is meant to leak.
    unsafe {
        std::env::set_var("BOXREEL_TEST_SECRET", "hunter2");
        libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY);
    }
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), checks::all()).exit_code()
}
