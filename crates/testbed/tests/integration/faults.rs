//! What hangs, crashes or is broken inside a service ends as a killed one would: others go on with its work.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::Mongod;
use testbed::cluster::{Cluster, PATIENCE, Plan, Process, clip};

/// Looks again and again until there is something.
async fn until<T>(what: &str, cluster: &Cluster, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what} did not happen\n{}", cluster.last_words());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The processes that `process` has started to read and write media.
fn children(process: &Process) -> Vec<i32> {
    let id = process.id();
    let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// What the kernel says of a process, or of one thread, after its name (proc(5)).
fn stat(task: i32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{task}/stat")).unwrap_or_default();
    stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Processor time that a process, or one thread, has used, in ticks of 10 ms.
fn ticks(task: i32) -> u64 {
    stat(task).get(11).and_then(|user| user.parse().ok()).unwrap_or_default()
}

/// Whether it computes, at this moment.
fn computes(task: i32) -> bool {
    stat(task).first().is_some_and(|state| state == "R")
}

/// Whether a process has a file of the volume open: it is past its start, and at its work.
fn has_opened(process: i32, volume: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let mut files = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    files.any(|file| file.starts_with(volume) && file.is_file())
}

fn send(id: i32, signal: i32) {
    // SAFETY: a plain system call. The id was just read as that of a child of a process of this test.
    unsafe { libc::kill(id, signal) };
}

fn plan(pre: usize, infer: usize, post: usize, further: &[(&str, &str)]) -> Plan {
    let plan = Plan { pre, infer, post, lease: 3, ..Plan::default() };
    plan.one_thread_each().with(&[("BOXREEL_STALL_SECONDS", "4")]).with(further)
}

/// How often `process` has logged a line that holds `words`.
fn said(cluster: &Cluster, words: &str) -> usize {
    let lines = cluster.logs().into_iter().map(|line| line.to_string());
    lines.filter(|line| line.contains(words)).count()
}

const OPTIONS: &str = "?every=40&keep_frames=false";

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_hangs_or_crashes_costs_one_attempt() {
    let mongod = Mongod::shared();
    let cluster = Cluster::start(&mongod.uri(), &mongod.fresh_database(), &plan(1, 1, 1, &[])).await;
    let source = clip(cluster.folder(), "clip.mp4", 500);
    let volume = cluster.volume().canonicalize().unwrap();
    // (Rust's own handler takes the first SIGSEGV that did not come from an access: SIGILL ends it just so.)
    for (service, signal, words) in [
        ("pre", libc::SIGSTOP, "taken to be hung"),
        ("post", libc::SIGSTOP, "taken to be hung"),
        ("pre", libc::SIGILL, "a media child crashed"),
        ("post", libc::SIGILL, "a media child crashed"),
    ] {
        let process = cluster.of(service).next().unwrap();
        let (before, known) = (said(&cluster, words), children(process));
        // With pictures of every frame, there is much to do.
        let id = cluster.upload(&source, "?every=40").await;
        // In the middle of its work.
        let busy = until("work", &cluster, || {
            children(process)
                .into_iter()
                .find(|child| !known.contains(child) && computes(*child) && has_opened(*child, &volume))
        });
        let busy = busy.await;
        send(busy, signal);
        let job = cluster.until_ended(&id, PATIENCE).await;
        assert_eq!(job["status"], "POSTPROCESSING_COMPLETE", "{service}, signal {signal}: {job}");
        assert_eq!(said(&cluster, words), before + 1, "{service}, signal {signal}: {}", cluster.last_words());
        assert!(!children(process).contains(&busy), "the child {busy} is still there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_hangs_ends_its_process_and_others_go_on() {
    let mongod = Mongod::shared();
    let cluster = Cluster::start(&mongod.uri(), &mongod.fresh_database(), &plan(1, 2, 1, &[])).await;
    let source = clip(cluster.folder(), "clip.mp4", 300);
    let victim = cluster.of("infer").next().unwrap();
    // A thread takes its name when it first runs.
    let model = until("the model's thread", &cluster, || thread_of(victim.id(), "detect-0")).await;
    let before = ticks(model);
    let id = cluster.upload(&source, "?every=3&keep_frames=false").await;
    // In the middle of a batch.
    until("detection", &cluster, || (ticks(model) > before + 20).then_some(())).await;
    let Some(stopped) = stop_thread(model) else {
        eprintln!("skipped: this machine lets no process stop a thread of another (ptrace)");
        return;
    };
    let job = cluster.until_ended(&id, PATIENCE).await;
    assert_eq!(job["status"], "POSTPROCESSING_COMPLETE", "{job}");
    until("the verdict", &cluster, || {
        (said(&cluster, "the network has computed one batch") == 1).then_some(())
    })
    .await;
    // The kernel lets the process go when nobody traces its threads any more.
    drop(stopped);
    until("the end of the process", &cluster, || victim.has_ended().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_model_fails_its_jobs_in_plain_words_and_turns_the_worker_unready() {
    let mongod = Mongod::shared();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.safetensors");
    break_model(&model);
    let model = model.display().to_string();
    let broken = plan(1, 1, 1, &[("BOXREEL_MODEL", &model), ("BOXREEL_PRECISION", "fp32")]);
    let cluster = Cluster::start(&mongod.uri(), &mongod.fresh_database(), &broken).await;
    let source = clip(cluster.folder(), "clip.mp4", 30);

    let job = cluster.until_ended(&cluster.upload(&source, OPTIONS).await, PATIENCE).await;
    assert_eq!(job["status"], "INFERENCE_ERROR", "{job}");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("not finite") && message.contains("weights"), "{message}");

    // Different jobs, all at once: then it is the worker that is not well, and nobody pays for it.
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(cluster.upload(&source, OPTIONS).await);
    }
    let infer = cluster.of("infer").next().unwrap();
    let began = Instant::now();
    let unready = loop {
        let answer = reqwest::get(format!("{}/readyz", infer.url())).await.unwrap();
        if answer.status() == reqwest::StatusCode::SERVICE_UNAVAILABLE {
            break answer.json::<Value>().await.unwrap();
        }
        assert!(began.elapsed() < PATIENCE, "still ready: {}", infer.last_words());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((&unready["worker"], &unready["database"]), (&Value::Bool(false), &Value::Bool(true)));
    for id in jobs {
        let job = cluster.try_get(&format!("/v1/jobs/{id}")).await.unwrap();
        assert!(job["error"].is_null(), "it was failed for what the worker did: {job}");
    }
}

/// The default weights with one layer's biases as large as a number can be: it loads, and computes infinities.
fn break_model(path: &Path) {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/ssd300-v2.safetensors");
    let mut bytes = fs::read(weights).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let layout: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let place = |at: usize| {
        let offset = layout["additional_blocks.0.1.bias"]["data_offsets"][at].as_u64().unwrap();
        header + usize::try_from(offset).unwrap()
    };
    for value in bytes[place(0)..place(1)].chunks_exact_mut(4) {
        value.copy_from_slice(&3e38_f32.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

/// The thread of a process that bears a name.
fn thread_of(process: i32, name: &str) -> Option<i32> {
    let mut tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let named = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|found| found.trim() == name)
    };
    tasks.find(named)?.file_name().to_string_lossy().parse().ok()
}

/// Stops one thread of another process until the guard is dropped; nothing where that is not allowed. (A signal would
/// stop the whole process.)
fn stop_thread(task: i32) -> Option<mpsc::Sender<()>> {
    let (stopped, is_stopped) = mpsc::channel();
    let (guard, dropped) = mpsc::channel::<()>();
    // Whoever traces a thread must stay: it goes on when its tracer ends.
    std::thread::spawn(move || {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: plain system calls on a thread of a child of this test.
        let done = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, task, none, none) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, task, none, none) == 0
                && libc::waitpid(task, std::ptr::null_mut(), libc::__WALL) == task
        };
        let _ = stopped.send(done);
        let _ = dropped.recv();
    });
    is_stopped.recv().is_ok_and(|done| done).then_some(guard)
}
