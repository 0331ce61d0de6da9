//! Processes and folders that do not outlive the test's process.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};

type Request = (Command, Sender<io::Result<Child>>);

/// Starts the children. A thread of its own that never ends: the kernel kills a child that asked for it when the
/// *thread* that started it ends, and a test's thread ends with the test, while others still use what it started.
static KEEPER: LazyLock<Mutex<Sender<Request>>> = LazyLock::new(|| {
    let (sender, requests) = channel::<Request>();
    std::thread::spawn(move || {
        for (mut command, answer) in requests {
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(sender)
});

/// Starts `command` as a child that is killed (SIGKILL) when this process ends, even by SIGKILL.
///
/// # Errors
/// When it cannot be started.
pub fn spawn_kept(mut command: Command) -> io::Result<Child> {
    // SAFETY: prctl is a plain system call; nothing is allocated or locked between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let (sender, answer) = channel();
    KEEPER.lock().unwrap().send((command, sender)).expect("the keeper never ends");
    answer.recv().expect("the keeper answers")
}

/// Has `folder` removed when the returned pipe is closed: when it is dropped, or when this process ends, however.
pub(crate) fn removed_in_the_end(folder: &Path) -> Janitor {
    let mut child = Command::new("sh")
        .args([
            "-c",
            "trap '' INT TERM HUP; cat >/dev/null; rm -rf -- \"$1\" || { sleep 1; rm -rf -- \"$1\"; }",
            "sh",
        ])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh is there");
    let pipe = child.stdin.take();
    Janitor { pipe, child }
}

pub(crate) struct Janitor {
    pipe: Option<ChildStdin>,
    child: Child,
}

impl Drop for Janitor {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = pipe.flush();
        }
        let _ = self.child.wait();
    }
}
