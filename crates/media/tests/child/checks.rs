//! The checks, from the caller's side.

use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use media::MediaError;
use media::child::{Access, ChildError, Limits, Pool, PoolSettings};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::tasks::{Act, Deed};

/// First argument of a copy of this program that is to be killed while its child hangs.
pub const ORPHAN_WORD: &str = "hold-a-hanging-child";

macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        vec![$(Trial::test(stringify!($name), || { on_runtime($name()); Ok(()) })),*]
    };
}

pub fn all() -> Vec<Trial> {
    trials![
        requests_and_responses_make_the_round_trip,
        large_messages_cross,
        printing_and_reading_stdin_do_not_disturb_the_protocol,
        one_slot_keeps_one_child,
        two_slots_work_at_the_same_time,
        never_more_children_than_slots,
        progress_is_complete,
        cancelling_kills_at_once,
        cancelling_ends_the_wait_for_a_slot,
        a_cancelled_token_starts_nothing,
        dropping_the_call_kills_the_child,
        dropping_the_pool_kills_idle_children,
        crashes_are_described_and_the_next_call_works,
        a_panic_is_a_crash_with_its_message,
        babble_is_a_crash,
        silence_after_a_broken_pipe_is_a_crash,
        an_error_of_the_task_arrives_and_the_child_stays,
        a_child_that_died_idle_is_replaced,
        memory_is_limited,
        file_size_is_limited,
        other_files_are_refused,
        another_access_gets_another_child,
        a_replaced_folder_is_found_again,
        a_file_that_came_later_is_found,
        network_is_refused,
        other_programs_are_refused,
        signalling_the_parent_is_refused,
        interrupts_are_left_to_the_parent,
        threads_and_x264_work_behind_the_fence,
        the_environment_carries_no_secret,
        no_descriptor_is_inherited,
        privileges_are_given_up,
        a_killed_parent_takes_its_child_along,
        a_program_that_is_no_child_is_said_to_be,
    ]
}

fn on_runtime(check: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), check).await.expect("the check hangs");
    });
}

/// A pool and the plainest way to use it.
struct Bench {
    pool: Pool,
    access: Access,
}

fn bench(slots: usize) -> Bench {
    bench_with(PoolSettings::new(slots))
}

fn bench_with(settings: PoolSettings) -> Bench {
    Bench { pool: Pool::new(settings), access: Access::default() }
}

impl Bench {
    fn writing(mut self, folder: &Path) -> Self {
        self.access.write.push(folder.to_owned());
        self
    }

    async fn act(&self, deed: Deed) -> Result<String, ChildError> {
        self.pool.call::<Act>(&deed, &self.access, &CancellationToken::new(), |_| {}).await
    }

    /// What the task's error says.
    async fn refusal(&self, deed: Deed) -> String {
        match self.act(deed).await {
            Err(ChildError::Media(MediaError::Storage(why))) => why,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    async fn crash(&self, deed: Deed) -> String {
        match self.act(deed).await {
            Err(ChildError::Crashed { how }) => how,
            other => panic!("expected a crash, got {other:?}"),
        }
    }

    async fn works(&self) {
        assert_eq!(self.act(Deed::Echo("still here".into())).await, Ok("still here".into()));
    }
}

fn process_exists(id: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    !stat.is_empty()
}

/// As [`process_exists`], but a zombie is none: an orphan is reaped by whoever is process 1 here.
fn process_runs(id: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Stops a process, so that nothing it does itself can be what ends it.
fn freeze(id: &str) {
    // SAFETY: `kill` touches no memory; the process is a child, or a child's child, that still runs.
    assert_eq!(unsafe { libc::kill(id.parse().unwrap(), libc::SIGSTOP) }, 0);
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether this kernel has landlock; says so where it has not.
fn landlock() -> bool {
    // SAFETY: asking for the version takes no pointer.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) };
    if version < 1 {
        eprintln!("skipped: this kernel has no landlock");
    }
    version >= 1
}

async fn requests_and_responses_make_the_round_trip() {
    let text = "naïve \u{1f4fc} \"quoted\"\nsecond line\0";
    assert_eq!(bench(1).act(Deed::Echo(text.into())).await, Ok(text.into()));
}

async fn large_messages_cross() {
    let bench = bench(1);
    let text = "x".repeat(5 << 20);
    assert_eq!(bench.act(Deed::Echo(text.clone())).await, Ok(text));
    let too_long = bench.act(Deed::Echo("x".repeat(17 << 20))).await;
    assert!(matches!(too_long, Err(ChildError::Media(MediaError::Internal(_)))), "{too_long:?}");
    bench.works().await;
}

async fn printing_and_reading_stdin_do_not_disturb_the_protocol() {
    let bench = bench(1);
    assert_eq!(bench.act(Deed::Print).await, Ok(String::new()));
    bench.works().await;
}

async fn one_slot_keeps_one_child() {
    let bench = bench(1);
    let ids =
        tokio::join!(bench.act(Deed::ProcessId), bench.act(Deed::ProcessId), bench.act(Deed::ProcessId));
    assert_eq!(ids.0, ids.1);
    assert_eq!(ids.1, ids.2);
    assert_ne!(ids.0, Ok(std::process::id().to_string()));
}

async fn two_slots_work_at_the_same_time() {
    let folder = TempDir::new().unwrap();
    let bench = bench(2).writing(folder.path());
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let (first, second) =
        tokio::join!(bench.act(Deed::Meet(a.clone(), b.clone())), bench.act(Deed::Meet(b, a)));
    assert_eq!((first, second), (Ok(String::new()), Ok(String::new())));
}

async fn never_more_children_than_slots() {
    let folder = TempDir::new().unwrap();
    let pool = Pool::new(PoolSettings::new(2));
    let cancel = CancellationToken::new();
    let mut ids = Vec::new();
    for i in 0..5 {
        let access = Access { read: vec![folder.path().join(i.to_string())], write: Vec::new() };
        ids.push(pool.call::<Act>(&Deed::ProcessId, &access, &cancel, |_| {}).await.unwrap());
    }
    eventually("retired children end", || ids.iter().filter(|id| process_exists(id)).count() <= 2).await;
}

async fn progress_is_complete() {
    let bench = bench(1);
    let sum = AtomicU64::new(0);
    let count = |units| {
        sum.fetch_add(units, Ordering::Relaxed);
    };
    let cancel = CancellationToken::new();
    bench.pool.call::<Act>(&Deed::Tick(12_345), &bench.access, &cancel, count).await.unwrap();
    assert_eq!(sum.into_inner(), 12_345);
}

async fn cancelling_kills_at_once() {
    let bench = bench(1);
    let cancel = CancellationToken::new();
    let child = Mutex::new(None);
    let hanging = bench.pool.call::<Act>(&Deed::Hang, &bench.access, &cancel, |id| {
        freeze(&id.to_string());
        *child.lock().unwrap() = Some((id.to_string(), Instant::now()));
        cancel.cancel();
    });
    assert_eq!(hanging.await, Err(ChildError::Cancelled));
    let (id, since) = child.into_inner().unwrap().unwrap();
    // A second is promised; a loaded machine gets more before this counts as broken.
    assert!(since.elapsed() < Duration::from_secs(10), "it took {:?}", since.elapsed());
    assert!(!process_exists(&id), "it must be gone and reaped when the call returns");
    bench.works().await;
}

async fn cancelling_ends_the_wait_for_a_slot() {
    let bench = bench(1);
    let (busy, waiting) = (CancellationToken::new(), CancellationToken::new());
    let hanging = bench.pool.call::<Act>(&Deed::Hang, &bench.access, &busy, |_| waiting.cancel());
    let patient = async {
        let outcome = bench.pool.call::<Act>(&Deed::ProcessId, &bench.access, &waiting, |_| {}).await;
        busy.cancel();
        outcome
    };
    let (hanging, patient) = tokio::join!(hanging, patient);
    assert_eq!((hanging, patient), (Err(ChildError::Cancelled), Err(ChildError::Cancelled)));
}

async fn a_cancelled_token_starts_nothing() {
    let folder = TempDir::new().unwrap();
    let bench = bench(1).writing(folder.path());
    let cancel = CancellationToken::new();
    cancel.cancel();
    let file = folder.path().join("file");
    let outcome = bench.pool.call::<Act>(&Deed::Write(file.clone(), 1), &bench.access, &cancel, |_| {}).await;
    assert_eq!(outcome, Err(ChildError::Cancelled));
    assert!(!file.exists());
}

async fn dropping_the_call_kills_the_child() {
    let bench = bench(1);
    let cancel = CancellationToken::new();
    let (id, hangs) = (AtomicU64::new(0), Notify::new());
    let hanging = bench.pool.call::<Act>(&Deed::Hang, &bench.access, &cancel, |units| {
        // Here, for the call is dropped before the branch below begins.
        freeze(&units.to_string());
        id.store(units, Ordering::Relaxed);
        hangs.notify_one();
    });
    tokio::select! {
        outcome = hanging => panic!("{outcome:?}"),
        () = hangs.notified() => {}
    }
    let id = id.into_inner().to_string();
    eventually("the child ends and is reaped", || !process_exists(&id)).await;
    bench.works().await;
}

async fn dropping_the_pool_kills_idle_children() {
    let bench = bench(1);
    let id = bench.act(Deed::ProcessId).await.unwrap();
    freeze(&id);
    drop(bench);
    eventually("the child ends and is reaped", || !process_exists(&id)).await;
}

async fn crashes_are_described_and_the_next_call_works() {
    let bench = bench(1);
    assert_eq!(bench.crash(Deed::Abort).await, "signal 6 (aborted)");
    assert_eq!(bench.crash(Deed::Segfault).await, "signal 11 (segmentation fault)");
    assert_eq!(bench.crash(Deed::Exit(7)).await, "exit status 7");
    bench.works().await;
}

async fn a_panic_is_a_crash_with_its_message() {
    let bench = bench(1);
    assert_eq!(bench.crash(Deed::Panic).await, "panic: the sky is falling");
    bench.works().await;
}

async fn babble_is_a_crash() {
    let bench = bench(1);
    assert_eq!(bench.crash(Deed::Babble).await, "it sent something that is no message");
    bench.works().await;
}

async fn silence_after_a_broken_pipe_is_a_crash() {
    let bench = bench(1);
    assert_eq!(bench.crash(Deed::FallSilent).await, "it stopped answering");
    bench.works().await;
}

async fn an_error_of_the_task_arrives_and_the_child_stays() {
    let bench = bench(1);
    let id = bench.act(Deed::ProcessId).await;
    let why = bench.refusal(Deed::Read("/nowhere/at/all".into())).await;
    assert!(why.contains("No such file"), "{why}");
    assert_eq!(bench.act(Deed::ProcessId).await, id);
}

async fn a_child_that_died_idle_is_replaced() {
    let bench = bench(1);
    let id = bench.act(Deed::ProcessId).await.unwrap();
    // SAFETY: the process is a child of this one and not yet reaped.
    unsafe { libc::kill(id.parse().unwrap(), libc::SIGKILL) };
    eventually("it is reaped", || !process_exists(&id)).await;
    bench.works().await;
}

async fn memory_is_limited() {
    let limits = Limits { memory_bytes: Some(256 << 20), ..Limits::default() };
    let bench = bench_with(PoolSettings { limits, ..PoolSettings::new(1) });
    assert_eq!(bench.act(Deed::Allocate(64 << 20)).await, Ok((64 << 20).to_string()));
    let how = bench.crash(Deed::Allocate(64 << 30)).await;
    assert_eq!(how, "memory limit: it needed more than 256 MiB");
    bench.works().await;
}

async fn file_size_is_limited() {
    let folder = TempDir::new().unwrap();
    let limits = Limits { file_bytes: Some(1 << 20), ..Limits::default() };
    let bench = bench_with(PoolSettings { limits, ..PoolSettings::new(1) }).writing(folder.path());
    assert_eq!(bench.act(Deed::Write(folder.path().join("small"), 1 << 20)).await, Ok(String::new()));
    let why = bench.refusal(Deed::Write(folder.path().join("large"), (1 << 20) + 1)).await;
    assert!(why.contains("File too large"), "{why}");
}

async fn other_files_are_refused() {
    if !landlock() {
        return;
    }
    let (own, source, foreign) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(source.path().join("video"), "frames").unwrap();
    fs::write(foreign.path().join("secret"), "hunter2").unwrap();
    let mut bench = bench(1).writing(own.path());
    bench.access.read.push(source.path().join("video"));

    assert_eq!(bench.act(Deed::Read(source.path().join("video"))).await, Ok("frames".into()));
    let denied = [
        Deed::Read(foreign.path().join("secret")),
        Deed::Read("/etc/passwd".into()),
        Deed::Write(foreign.path().join("new"), 1),
        Deed::Remove(foreign.path().join("secret")),
        Deed::Write(source.path().join("video"), 1),
        Deed::Remove(source.path().join("video")),
    ];
    for deed in denied {
        let why = bench.refusal(deed).await;
        assert!(why.contains("Permission denied"), "{why}");
    }
    let [a, b] = ["a", "b"].map(|name| own.path().join(name));
    let fine = [
        Deed::Write(a.clone(), 3),
        Deed::Write(a.clone(), 2),
        Deed::Rename(a, b.clone()),
        Deed::Remove(b),
        Deed::Read("/proc/cpuinfo".into()),
    ];
    for deed in fine {
        bench.act(deed).await.unwrap();
    }
}

async fn another_access_gets_another_child() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut bench = bench(1).writing(one.path());
    let first = bench.act(Deed::ProcessId).await.unwrap();
    bench.act(Deed::Write(one.path().join("file"), 1)).await.unwrap();
    bench.access.write = vec![two.path().to_owned()];
    bench.act(Deed::Write(two.path().join("file"), 1)).await.unwrap();
    eventually("the first child is retired", || !process_exists(&first)).await;
}

async fn a_replaced_folder_is_found_again() {
    let root = TempDir::new().unwrap();
    let folder = root.path().join("job");
    let bench = bench(1).writing(&folder);
    for _ in 0..2 {
        fs::create_dir(&folder).unwrap();
        assert_eq!(bench.act(Deed::Write(folder.join("file"), 1)).await, Ok(String::new()));
        fs::rename(&folder, root.path().join("old")).unwrap();
        let why = bench.refusal(Deed::Write(folder.join("file"), 1)).await;
        assert!(why.contains("No such file"), "{why}");
        fs::remove_dir_all(root.path().join("old")).unwrap();
    }
}

async fn a_file_that_came_later_is_found() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("video");
    let mut bench = bench(1);
    bench.access.read.push(file.clone());
    bench.refusal(Deed::Read(file.clone())).await;
    fs::write(&file, "frames").unwrap();
    assert_eq!(bench.act(Deed::Read(file)).await, Ok("frames".into()));
}

async fn network_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let why = bench(1).refusal(Deed::Connect(listener.local_addr().unwrap().port())).await;
    assert!(why.contains("Operation not permitted"), "{why}");
}

async fn other_programs_are_refused() {
    let bench = bench(1);
    for deed in [Deed::Run, Deed::Exec] {
        let why = bench.refusal(deed).await;
        assert!(why.contains("Operation not permitted"), "{why}");
    }
}

async fn signalling_the_parent_is_refused() {
    let why = bench(1).refusal(Deed::SignalParent).await;
    assert!(why.contains("Operation not permitted"), "{why}");
}

async fn interrupts_are_left_to_the_parent() {
    let bench = bench(1);
    assert_eq!(bench.act(Deed::Signals).await, Ok("true".into()), "it must lead its own process group");
    bench.works().await;
}

async fn threads_and_x264_work_behind_the_fence() {
    let bench = bench(1);
    assert_eq!(bench.act(Deed::Threads).await, Ok("28".into()));
    assert_eq!(bench.act(Deed::EncodeH264).await, Ok("16".into()));
}

async fn the_environment_carries_no_secret() {
    assert!(std::env::var_os("BOXREEL_TEST_SECRET").is_some());
    let environment = vec![("BOXREEL_TEST_PLAIN".into(), "1".into())];
    let bench = bench_with(PoolSettings { environment, ..PoolSettings::new(1) });
    let names = bench.act(Deed::Environment).await.unwrap();
    let mut unexpected = names
        .split_whitespace()
        .filter(|name| !["LD_LIBRARY_PATH", "LANG", "LC_ALL", "BOXREEL_TEST_PLAIN"].contains(name));
    assert_eq!(unexpected.next(), None);
    assert!(names.contains("BOXREEL_TEST_PLAIN"));
}

async fn no_descriptor_is_inherited() {
    // Standard streams and the two pipes.
    assert_eq!(bench(1).act(Deed::OpenFiles).await, Ok("5".into()));
}

async fn privileges_are_given_up() {
    let status = bench(1).act(Deed::Status).await.unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    // At most the three that let root use other users' files.
    assert_eq!(u64::from_str_radix(&field("CapPrm"), 16).unwrap() & !0b1110, 0);
}

/// The copy of this program that [`a_killed_parent_takes_its_child_along`] kills.
pub fn hold_a_hanging_child() {
    on_runtime(async {
        let bench = bench(1);
        let cancel = CancellationToken::new();
        let tell = |id| println!("{id}");
        let _ = bench.pool.call::<Act>(&Deed::Hang, &bench.access, &cancel, tell).await;
    });
}

async fn a_killed_parent_takes_its_child_along() {
    // Twice over: the closing pipe ends a child that still works as it should, this signal any other.
    assert_eq!(bench(1).act(Deed::DeathSignal).await, Ok(libc::SIGKILL.to_string()));
    let program = std::env::current_exe().unwrap();
    let mut parent = Command::new(program).arg(ORPHAN_WORD).stdout(Stdio::piped()).spawn().unwrap();
    let mut id = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut id).unwrap();
    let id = id.trim();
    assert!(process_runs(id));
    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually("the orphan ends", || !process_runs(id)).await;
}

async fn a_program_that_is_no_child_is_said_to_be() {
    for executable in ["/bin/true", "/bin/cat", "/nowhere/at/all"] {
        let bench = bench_with(PoolSettings { executable: executable.into(), ..PoolSettings::new(1) });
        let outcome = bench.act(Deed::ProcessId).await;
        assert!(matches!(outcome, Err(ChildError::Spawn(_))), "{executable}: {outcome:?}");
    }
}
