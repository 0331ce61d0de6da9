//! The parent's side: children to lend out, and one call from request to outcome.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::process::{Process, describe};
use super::{Access, ChildError, Limits, Task, wire};
use crate::MediaError;

/// Bytes of a child's last words that are kept for a report.
const LOG_KEPT: usize = 4096;

/// How long a killed child is waited for. One that hangs in the kernel (on a dead NFS server) stays longer;
/// its keeper reaps it whenever it goes.
const DEATH_PATIENCE: Duration = Duration::from_secs(2);

/// How long a child may take from its start to its first words.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How to run children.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// The program, whose `main` must begin with [`super::Registry::serve_if_child`].
    pub executable: PathBuf,
    /// Children at most, and so calls at a time; at least one.
    pub slots: usize,
    /// What each child may use up.
    pub limits: Limits,
    /// Variables of the children's environment, beside `LD_LIBRARY_PATH`, `LANG` and `LC_ALL`. Nothing
    /// secret: the environment is readable by whatever a file makes of the child.
    pub environment: Vec<(String, String)>,
}

impl PoolSettings {
    /// This program itself, in `slots` children with the default [`Limits`].
    #[must_use]
    pub fn new(slots: usize) -> Self {
        // This link leads to the running program even when its file has been replaced since.
        let executable = PathBuf::from("/proc/self/exe");
        Self { executable, slots, limits: Limits::default(), environment: Vec::new() }
    }
}

/// Long-lived children, one a slot, started when first needed. Dropping the pool kills them.
///
/// A pool belongs to the async runtime it is first used in.
pub struct Pool {
    settings: PoolSettings,
    slots: Semaphore,
    /// The longest idle first.
    idle: Mutex<VecDeque<Child>>,
    /// Children there are, idle or at work.
    alive: Arc<AtomicUsize>,
}

impl Pool {
    /// A pool; it starts no child yet.
    #[must_use]
    pub fn new(mut settings: PoolSettings) -> Self {
        settings.slots = settings.slots.clamp(1, Semaphore::MAX_PERMITS);
        let slots = Semaphore::new(settings.slots);
        Self { settings, slots, idle: Mutex::default(), alive: Arc::default() }
    }

    /// Runs a task in a free slot, waiting for one. `on_progress` gets the units that the task ticked since
    /// the last time. Dropping the future or cancelling `cancel` kills the child; when a cancelled call
    /// returns, the child is gone and writes no more.
    ///
    /// # Errors
    /// See [`ChildError`]. The next call finds a working child, whatever became of this one.
    pub fn call<T: Task>(
        &self,
        request: &T::Request,
        access: &Access,
        cancel: &CancellationToken,
        on_progress: impl Fn(u64) + Send + Sync,
    ) -> impl Future<Output = Result<T::Response, ChildError>> + Send {
        // Before the first await, for a request need not be `Sync`.
        let message = encode::<T>(request);
        async move { self.run::<T>(&message?, access, cancel, &on_progress).await }
    }

    async fn run<T: Task>(
        &self,
        message: &[u8],
        access: &Access,
        cancel: &CancellationToken,
        on_progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<T::Response, ChildError> {
        let slot = cancel.run_until_cancelled(self.slots.acquire()).await.ok_or(ChildError::Cancelled)?;
        let _slot = slot.map_err(|error| ChildError::Spawn(error.to_string()))?;
        // An idle child may turn out to be bound to a folder that has been replaced since, and a fresh one
        // may be overtaken by the same; more often than that, something is wrong with the volume.
        for _ in 0..3 {
            let mut child = match self.idle_child(access) {
                Some(child) => child,
                None => cancel
                    .run_until_cancelled(self.start_child(access))
                    .await
                    .unwrap_or(Err(ChildError::Cancelled))?,
            };
            let reply = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(ChildError::Cancelled),
                reply = child.exchange(message, on_progress) => {
                    reply.map_err(|how| ChildError::Crashed { how })
                }
            };
            let outcome = match reply {
                Ok((wire::DONE, body)) => serde_json::from_slice(&body).map_err(|error| {
                    ChildError::Crashed { how: format!("its answer makes no sense: {error}") }
                }),
                Ok((wire::FAILED, body)) => Err(serde_json::from_slice::<MediaError>(&body).map_or_else(
                    |error| ChildError::Crashed { how: format!("its error makes no sense: {error}") },
                    ChildError::Media,
                )),
                Ok((wire::OUTDATED, _)) => {
                    child.process.kill();
                    continue;
                }
                Ok((wire::PANICKED, text)) => {
                    Err(ChildError::Crashed { how: format!("panic: {}", printable(&text)) })
                }
                Ok((kind, _)) => {
                    Err(ChildError::Crashed { how: format!("it sent a message of kind {kind}") })
                }
                Err(error) => Err(error),
            };
            if let Err(ChildError::Crashed { how }) = &outcome {
                tracing::warn!(how, log = child.log_text(), "a media child crashed");
            }
            if matches!(outcome, Ok(_) | Err(ChildError::Media(_))) && child.arrived.is_empty() {
                self.idle().push_back(child);
            } else {
                child.process.kill();
                child.process.end(DEATH_PATIENCE).await;
            }
            return outcome;
        }
        Err(ChildError::Spawn("the files it may use keep being replaced; try again".into()))
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Child>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle child that is fenced in just so.
    fn idle_child(&self, access: &Access) -> Option<Child> {
        let mut idle = self.idle();
        idle.retain(|child| !child.process.has_ended());
        let at = idle.iter().rposition(|child| child.access == *access)?;
        idle.remove(at)
    }

    /// A new child, fenced in; where the slots are all taken by idle ones, the longest idle makes room.
    async fn start_child(&self, access: &Access) -> Result<Child, ChildError> {
        if self.alive.load(Ordering::Relaxed) >= self.settings.slots {
            let retired = self.idle().pop_front();
            drop(retired);
        }
        let place = Place::take(&self.alive);
        let failed = |error: &dyn std::fmt::Display| ChildError::Spawn(error.to_string());
        let (process, pipes) = Process::start(&self.settings).await.map_err(|error| failed(&error))?;
        let mut child = Child {
            process,
            requests: ChildStdin::from_std(pipes.requests).map_err(|error| failed(&error))?,
            replies: ChildStdout::from_std(pipes.replies).map_err(|error| failed(&error))?,
            log: Some(ChildStderr::from_std(pipes.log).map_err(|error| failed(&error))?),
            arrived: Vec::new(),
            log_tail: Vec::new(),
            access: access.clone(),
            limits: self.settings.limits,
            _place: place,
        };

        let start = serde_json::to_vec(&wire::Start::new(access, self.settings.limits));
        let start = start.map_err(|error| failed(&error))?;
        let start =
            wire::message(wire::START, &start).ok_or_else(|| failed(&"its list of files is too long"))?;
        let hello = tokio::time::timeout(START_PATIENCE, child.exchange(&start, &|_| {})).await;
        let hello = match hello {
            Ok(Ok((wire::HELLO, body))) => serde_json::from_slice::<wire::Hello>(&body).ok(),
            Ok(Ok(_)) => None,
            Ok(Err(how)) => {
                let log = child.log_text();
                let said = log.lines().last().filter(|line| !line.is_empty());
                return Err(ChildError::Spawn(said.map_or(how.clone(), |said| format!("{how}; {said}"))));
            }
            Err(_) => return Err(failed(&format!("no answer within {} s", START_PATIENCE.as_secs()))),
        };
        let hello = hello.ok_or_else(|| failed(&"it is no media child of this version"))?;
        static TOLD: Once = Once::new();
        if !hello.missing.is_empty() {
            TOLD.call_once(|| {
                let missing = hello.missing.join("; ");
                tracing::warn!(missing, "media children run with fewer fences than they could");
            });
        }
        Ok(child)
    }
}

/// The message that asks for a task.
fn encode<T: Task>(request: &T::Request) -> Result<Vec<u8>, ChildError> {
    let failed = |why: String| MediaError::Internal(format!("Media task {} cannot be sent: {why}", T::NAME));
    let mut body = [T::NAME.as_bytes(), b"\n"].concat();
    serde_json::to_writer(&mut body, request).map_err(|error| failed(error.to_string()))?;
    let message = wire::message(wire::CALL, &body);
    Ok(message.ok_or_else(|| failed(format!("{} bytes are too many", body.len())))?)
}

/// One child among the counted.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self(alive.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A child and the conversation with it. Dropping it kills it.
struct Child {
    process: Process,
    requests: ChildStdin,
    replies: ChildStdout,
    /// Its stderr, until that ends.
    log: Option<ChildStderr>,
    /// What came on `replies` and is no whole message yet.
    arrived: Vec<u8>,
    log_tail: Vec<u8>,
    access: Access,
    limits: Limits,
    _place: Place,
}

impl Child {
    /// Sends a message and returns the first that comes back, progress aside. The error says how it died.
    async fn exchange(
        &mut self,
        message: &[u8],
        on_progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(u8, Vec<u8>), String> {
        let mut unsent = message;
        let mut said = [0; 1024];
        loop {
            while let Some((kind, body)) = wire::take(&mut self.arrived)? {
                if kind != wire::PROGRESS {
                    return Ok((kind, body));
                }
                on_progress(serde_json::from_slice(&body).map_err(|_| "it sent progress without a number")?);
            }
            // All at once: a child that waits to be heard reads no requests.
            tokio::select! {
                sent = self.requests.write(unsent), if !unsent.is_empty() => match sent {
                    Ok(count) => unsent = &unsent[count..],
                    // It is gone; the end of its replies will tell how.
                    Err(_) => unsent = &[],
                },
                read = self.replies.read_buf(&mut self.arrived) => {
                    if !matches!(read, Ok(1..)) {
                        return Err(self.cause_of_death().await);
                    }
                }
                read = read_log(&mut self.log, &mut said) => self.keep_log(&said[..read]),
            }
        }
    }

    /// How a child that closed its replies came to that.
    async fn cause_of_death(&mut self) -> String {
        let ended = self.process.end(DEATH_PATIENCE).await;
        self.process.kill();
        // Its last words are in the pipe already.
        let _ = tokio::time::timeout(DEATH_PATIENCE, async {
            let mut said = [0; 1024];
            while self.log.is_some() {
                let read = read_log(&mut self.log, &mut said).await;
                self.keep_log(&said[..read]);
            }
        })
        .await;
        match (ended, self.limits.memory_bytes) {
            // Rust's and C++'s words for it.
            (Some(_), Some(limit))
                if ["memory allocation of", "bad_alloc"].iter().any(|it| self.log_text().contains(it)) =>
            {
                format!("memory limit: it needed more than {} MiB", limit >> 20)
            }
            (Some(status), _) => describe(status),
            (None, _) => "it stopped answering".into(),
        }
    }

    fn keep_log(&mut self, said: &[u8]) {
        if !said.is_empty() {
            tracing::debug!(said = printable(said), "media child");
            self.log_tail.extend_from_slice(said);
            let surplus = self.log_tail.len().saturating_sub(LOG_KEPT);
            self.log_tail.drain(..surplus);
        }
    }

    fn log_text(&self) -> String {
        printable(&self.log_tail)
    }
}

/// Reads some of a log; at its end, forgets it, and from then on never returns.
async fn read_log(log: &mut Option<ChildStderr>, into: &mut [u8]) -> usize {
    let Some(pipe) = log else { return std::future::pending().await };
    let read = pipe.read(into).await.unwrap_or(0);
    if read == 0 {
        *log = None;
    }
    read
}

/// Text for our own log: what a child says is in the hands of the file it reads.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.trim_end().chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}
