//! One child process, from its start to its reaping.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::{PoolSettings, wire};

/// The parent's ends of a child's pipes.
pub(super) struct Pipes {
    pub requests: std::process::ChildStdin,
    pub replies: std::process::ChildStdout,
    pub log: std::process::ChildStderr,
}

/// A running child. Dropping it kills it; its keeper reaps it.
pub(super) struct Process {
    /// Its process id until it is reaped, after which the number may be somebody else's.
    id: Arc<Mutex<Option<libc::pid_t>>>,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts one.
    ///
    /// Every child has a keeper, a thread that starts it, waits for it and reaps it. A thread, because the
    /// kernel takes the *thread* that started a child for the parent whose death the child wants to follow,
    /// and the threads of an async runtime come and go.
    pub(super) async fn start(settings: &PoolSettings) -> io::Result<(Self, Pipes)> {
        let mut command = command(settings);
        let (started, start) = oneshot::channel();
        std::thread::Builder::new().name("media-keeper".into()).stack_size(128 << 10).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let pipes = child
                .stdin
                .take()
                .zip(child.stdout.take())
                .zip(child.stderr.take())
                .map(|((requests, replies), log)| Pipes { requests, replies, log });
            let process_id = child.id().cast_signed();
            let id = Arc::new(Mutex::new(Some(process_id)));
            let (end, ended) = watch::channel(None);
            let process = Self { id: id.clone(), ended };
            // A caller that is gone by now drops the process, which kills it.
            let _ = started.send(pipes.map(|pipes| (process, pipes)).ok_or(io::ErrorKind::BrokenPipe.into()));

            wait_without_reaping(process_id);
            // From here on nobody may send it a signal any more.
            *id.lock().unwrap_or_else(PoisonError::into_inner) = None;
            let _ = end.send(child.wait().ok());
        })?;
        start.await.map_err(|_| io::Error::other("the thread that starts it died"))?
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.id.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Ends it; it is gone soon after.
    pub(super) fn kill(&self) {
        let id = self.id.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = *id {
            // SAFETY: `kill` touches no memory. The child is not reaped while the lock is held, so both the
            // process and the process group, whose leader it is, are still its own.
            unsafe {
                libc::kill(-id, libc::SIGKILL);
                libc::kill(id, libc::SIGKILL);
            }
        }
    }

    /// How it ended, waiting for that at most `patience`.
    pub(super) async fn end(&mut self, patience: Duration) -> Option<ExitStatus> {
        let ended = tokio::time::timeout(patience, self.ended.wait_for(Option::is_some)).await;
        ended.ok().and_then(Result::ok).and_then(|status| *status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn command(settings: &PoolSettings) -> Command {
    let mut command = Command::new(&settings.executable);
    command
        .arg0("boxreel: media child")
        .args([wire::CHILD_WORD, &std::process::id().to_string()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C goes to the foreground group: the parent decides what becomes of its children.
        .process_group(0);
    // Nothing but what the loader and the C library want.
    for name in ["LD_LIBRARY_PATH", "LANG", "LC_ALL"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(settings.environment.iter().map(|(name, value)| (name, value)));
    command
}

/// Returns when the child has ended, leaving it as a zombie, whose number nobody can take.
fn wait_without_reaping(id: libc::pid_t) {
    loop {
        // SAFETY: an all-zero `siginfo_t` is valid, and the kernel only writes into it.
        let failed = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, id.cast_unsigned(), &raw mut info, libc::WEXITED | libc::WNOWAIT) != 0
        };
        if !failed || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// An exit status in words.
pub(super) fn describe(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("exit status {}", status.code().unwrap_or_default());
    };
    let name = match signal {
        libc::SIGILL => "illegal instruction",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "arithmetic error",
        libc::SIGKILL => "killed, perhaps because the machine ran out of memory",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGSYS => "forbidden system call",
        libc::SIGTERM => "terminated",
        libc::SIGXCPU => "processor time limit",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}
