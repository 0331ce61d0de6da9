//! Programs whose clock is wrong.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long off(void) {
    static long seconds;
    static int known;
    if (!known) {
        const char *text = getenv("BOXREEL_TEST_CLOCK_OFF");
        seconds = text ? atol(text) : 0;
        known = 1;
    }
    return seconds;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += off();
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"#;

/// The shim as a library, compiled once a process: Debian's libfaketime would be one package more, for three
/// functions.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = tempfile::Builder::new().prefix("boxreel-clock-").tempdir().unwrap().keep();
    std::mem::forget(crate::kept::removed_in_the_end(&folder));
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    std::fs::write(&source, SHIM).unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).status();
    assert!(
        compiled.is_ok_and(|status| status.success()),
        "cc cannot compile the clock: run scripts/setup.sh"
    );
    library
});

/// Makes `command` see the wall clock `seconds` later than it is (earlier, if negative). Clocks that only
/// measure time stay as they are.
pub fn set_clock_off(command: &mut Command, seconds: i64) {
    command.env("LD_PRELOAD", LIBRARY.as_os_str()).env("BOXREEL_TEST_CLOCK_OFF", seconds.to_string());
}
