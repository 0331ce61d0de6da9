//! The child's side: take over the inherited pipes, put up the fence, serve tasks until stdin closes.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::{Access, Task, fence, wire};
use crate::MediaError;

/// Progress messages of one child are at least this far apart.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// How a task says that work moves. The worker loop takes silence for a hang.
pub struct Progress {
    to: Option<Sender>,
    pending: AtomicU64,
    sent: Mutex<Option<Instant>>,
}

impl Progress {
    fn new(to: Option<Sender>) -> Self {
        Self { to, pending: AtomicU64::new(0), sent: Mutex::new(None) }
    }

    /// One that tells nobody, for running a task without a child.
    #[must_use]
    pub fn silent() -> Self {
        Self::new(None)
    }

    /// Adds `units` of work done since the last call, such as frames. Cheap: most calls only count, and
    /// the sum is sent ten times a second. May be called from several threads.
    pub fn tick(&self, units: u64) {
        self.pending.fetch_add(units, Ordering::Relaxed);
        // Whoever finds it locked leaves the sending to the thread that has it.
        if let Ok(mut sent) = self.sent.try_lock()
            && sent.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL)
        {
            *sent = Some(Instant::now());
            self.flush();
        }
    }

    /// For work that tells its running total: ticks what came on top. A total that falls back (a second pass)
    /// starts over.
    pub fn of_totals(&self) -> impl FnMut(u64) + '_ {
        let mut before = 0;
        move |total| {
            self.tick(if total < before { total } else { total - before });
            before = total;
        }
    }

    fn flush(&self) {
        let units = self.pending.swap(0, Ordering::Relaxed);
        if let Some(to) = &self.to
            && units > 0
        {
            to.send(wire::PROGRESS, units.to_string().as_bytes());
        }
    }
}

type Handler = fn(&[u8], &Progress) -> Result<Vec<u8>, MediaError>;

/// Which tasks this executable knows; built once, in `main`.
#[derive(Default)]
pub struct Registry {
    tasks: BTreeMap<&'static str, Handler>,
}

impl Registry {
    /// One that knows no task.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a task.
    #[must_use]
    pub fn with<T: Task>(mut self) -> Self {
        let known = self.tasks.insert(T::NAME, handle::<T>);
        debug_assert!(known.is_none(), "two tasks are called {}", T::NAME);
        self
    }

    /// Must be the first thing in `main`, before any thread, file or runtime: when this process was started
    /// as a child it serves tasks until its stdin closes, and never returns. Otherwise it does nothing.
    pub fn serve_if_child(&self) {
        let mut arguments = std::env::args_os().skip(1);
        if arguments.next().is_none_or(|word| word != wire::CHILD_WORD) {
            return;
        }
        let parent = arguments.next().and_then(|id| id.to_str()?.parse().ok());
        let Some(parent) = parent else {
            // Somebody typed the word.
            eprintln!("{} is for Boxreel's own use: it starts itself like this.", wire::CHILD_WORD);
            std::process::exit(2);
        };
        match self.serve(parent) {
            Ok(never) => match never {},
            Err(error) => {
                eprintln!("{error}");
                leave(1)
            }
        }
    }

    fn serve(&self, parent: u32) -> io::Result<std::convert::Infallible> {
        fence::die_with(parent)?;
        crate::av::quiet();
        let (mut from, to) = take_over_pipes()?;
        fence::ignore_signals()?;

        let (wire::START, start) = wire::read(&mut from)? else {
            return Err(io::Error::other("the first message was not the start"));
        };
        let (access, limits) = serde_json::from_slice::<wire::Start>(&start)?.into_parts();
        let bound = identities(&access);
        let missing = fence::put_up(&access, limits)?;
        to.send(wire::HELLO, &serde_json::to_vec(&wire::Hello { missing })?);

        // Read on a thread of its own, so that a parent's closing of the pipe ends a busy child too.
        let (calls, next) = mpsc::channel();
        std::thread::Builder::new().name("requests".into()).spawn(move || {
            while let Ok((wire::CALL, call)) = wire::read(&mut from) {
                if calls.send(call).is_err() {
                    break;
                }
            }
            leave(0)
        })?;
        loop {
            let Ok(call) = next.recv() else { leave(0) };
            if identities(&access) == bound {
                self.answer(&call, &to);
            } else {
                to.send(wire::OUTDATED, b"null");
            }
        }
    }

    /// Runs one call and sends its outcome.
    fn answer(&self, call: &[u8], to: &Sender) {
        let (name, request) = match call.iter().position(|&byte| byte == b'\n') {
            Some(at) => (&call[..at], &call[at + 1..]),
            None => (call, [].as_slice()),
        };
        let progress = Progress::new(Some(to.clone()));
        let outcome = match self.tasks.iter().find(|(known, _)| known.as_bytes() == name) {
            Some((_, run)) => catch_unwind(AssertUnwindSafe(|| run(request, &progress))),
            None => Ok(Err(MediaError::Internal(format!(
                "This program has no media task {:?}.",
                String::from_utf8_lossy(name)
            )))),
        };
        progress.flush();
        match outcome {
            Ok(Ok(response)) if response.len() <= wire::MAX_BODY => to.send(wire::DONE, &response),
            Ok(Ok(response)) => to.fail(&MediaError::Internal(format!(
                "The answer of a media task is too long ({} bytes).",
                response.len()
            ))),
            Ok(Err(error)) => to.fail(&error),
            Err(panic) => {
                to.send(wire::PANICKED, panic_text(panic.as_ref()).as_bytes());
                // What the panic left behind is nothing to build the next task on.
                leave(1)
            }
        }
    }
}

fn handle<T: Task>(request: &[u8], progress: &Progress) -> Result<Vec<u8>, MediaError> {
    let garbled = |error: serde_json::Error| MediaError::Internal(format!("Media task {}: {error}", T::NAME));
    let request = serde_json::from_slice(request).map_err(garbled)?;
    let response = T::run(request, progress)?;
    serde_json::to_vec(&response).map_err(garbled)
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

/// Ends the process at once. Destructors and exit handlers of libraries whose threads still run are a
/// classic way to crash on the way out.
fn leave(status: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Where each path of the access leads: device and inode. Landlock's rules hold on to those, not to names.
fn identities(access: &Access) -> Vec<Option<(u64, u64)>> {
    let identity = |path: &PathBuf| path.metadata().ok().map(|it| (it.dev(), it.ino()));
    access.read.iter().chain(&access.write).map(identity).collect()
}

/// Sends messages to the parent, whole, from any thread.
#[derive(Clone)]
struct Sender(std::sync::Arc<Mutex<File>>);

impl Sender {
    fn send(&self, kind: u8, body: &[u8]) {
        let Some(message) = wire::message(kind, body) else { leave(1) };
        let mut pipe = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pipe.write_all(&message).is_err() {
            // Nobody listens any more.
            leave(0)
        }
    }

    fn fail(&self, error: &MediaError) {
        match serde_json::to_vec(error) {
            Ok(body) => self.send(wire::FAILED, &body),
            Err(_) => leave(1),
        }
    }
}

/// Moves the two message pipes away from stdin and stdout, where a library could read or print by
/// accident, and closes whatever else was inherited.
fn take_over_pipes() -> io::Result<(File, Sender)> {
    // Libraries of the parent may have opened files that survive an exec. Nothing of ours is open yet.
    // SAFETY: no descriptor from 3 on is owned by any value in this process: `main` has only begun.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    let from = duplicate(0)?;
    let to = duplicate(1)?;
    let null = File::options().read(true).open("/dev/null")?;
    replace(null.as_raw_fd(), 0)?;
    replace(2, 1)?;
    Ok((from, Sender(std::sync::Arc::new(Mutex::new(to)))))
}

fn duplicate(fd: RawFd) -> io::Result<File> {
    // SAFETY: `fcntl` with F_DUPFD_CLOEXEC touches no memory.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(copy) })
}

fn replace(by: RawFd, fd: RawFd) -> io::Result<()> {
    // SAFETY: `dup2` touches no memory; `fd` is a standard stream, which no value owns.
    if unsafe { libc::dup2(by, fd) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
