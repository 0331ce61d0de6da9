//! The three services as real processes, on one volume and one database.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;

use crate::kept::{Janitor, removed_in_the_end, spawn_kept};

/// How long anything of a cluster may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What users send as a bearer token.
pub const API_TOKEN: &str = "user-token";
/// What workers send.
pub const WORKER_TOKEN: &str = "worker-token";

/// How many of each service there are, and what they are told.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Processes of pre.
    pub pre: usize,
    /// Processes of infer.
    pub infer: usize,
    /// Processes of post.
    pub post: usize,
    /// Seconds a lease lasts.
    pub lease: u32,
    /// Further variables of every process's environment.
    pub environment: Vec<(String, String)>,
    /// What each process's wall clock is off, in seconds: of pre, infer and post.
    pub clocks: [i64; 3],
}

impl Plan {
    /// This plan with further variables of every process's environment.
    #[must_use]
    pub fn with(mut self, variables: &[(&str, &str)]) -> Self {
        self.environment
            .extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self
    }

    /// This plan with one piece of work in hand, and one thread, in every process.
    #[must_use]
    pub fn one_thread_each(self) -> Self {
        self.with(&[("BOXREEL_SLOTS", "1"), ("BOXREEL_THREADS", "1")])
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self { pre: 1, infer: 1, post: 1, lease: 10, environment: Vec::new(), clocks: [0; 3] }
    }
}

/// A cluster. Dropped, it is killed and its volume removed.
pub struct Cluster {
    /// All processes: those of pre first.
    pub processes: Vec<Process>,
    folder: TempDir,
    http: reqwest::Client,
    _janitor: Janitor,
}

/// One process of a service, which can be ended and started again.
pub struct Process {
    /// `pre`, `infer` or `post`.
    pub service: &'static str,
    /// Its number among those of its service, from 0.
    pub number: usize,
    port: u16,
    child: Mutex<Option<Child>>,
    environment: Vec<(String, String)>,
    clock: i64,
    log: PathBuf,
}

impl Cluster {
    /// Starts `plan` on the database `database` of the server at `uri`, and waits until all are ready.
    pub async fn start(uri: &str, database: &str, plan: &Plan) -> Self {
        // An error means that another test was first.
        drop(rustls::crypto::ring::default_provider().install_default());
        let folder = tempfile::Builder::new().prefix("boxreel-cluster-").tempdir().unwrap();
        let janitor = removed_in_the_end(folder.path());
        let volume = folder.path().join("volume");
        fs::create_dir(&volume).unwrap();
        let ports: Vec<u16> = (0..plan.pre + plan.infer + plan.post).map(|_| crate::free_port()).collect();
        let first_infer = ports.get(plan.pre).copied().unwrap_or_default();
        let environment: Vec<(String, String)> = [
            ("BOXREEL_DATA_DIR", volume.display().to_string()),
            ("BOXREEL_MONGO_URI", uri.to_owned()),
            ("BOXREEL_MONGO_DATABASE", database.to_owned()),
            ("BOXREEL_API_TOKEN", API_TOKEN.to_owned()),
            ("BOXREEL_WORKER_TOKEN", WORKER_TOKEN.to_owned()),
            ("BOXREEL_LEASE_SECONDS", plan.lease.to_string()),
            ("BOXREEL_LOG_FORMAT", "json".to_owned()),
            ("BOXREEL_DISK_RESERVE", "1MB".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .chain(plan.environment.iter().cloned())
        .collect();
        let counts = [("pre", plan.pre), ("infer", plan.infer), ("post", plan.post)];
        let of_service = counts
            .into_iter()
            .zip(plan.clocks)
            .flat_map(|((service, count), clock)| (0..count).map(move |number| (service, number, clock)));
        let processes: Vec<Process> = of_service
            .zip(&ports)
            .map(|((service, number, clock), &port)| {
                let mut environment = environment.clone();
                let mut set = |name: &str, value: String| environment.push((name.to_owned(), value));
                set("BOXREEL_LISTEN", format!("127.0.0.1:{port}"));
                set("BOXREEL_WORKER_NAME", format!("{number}"));
                match service {
                    "pre" => set("BOXREEL_INFER_URL", format!("http://127.0.0.1:{first_infer}")),
                    _ => set("BOXREEL_PRE_URL", format!("http://127.0.0.1:{}", ports[number % plan.pre])),
                }
                let log = folder.path().join(format!("{service}-{number}.log"));
                Process { service, number, port, child: Mutex::default(), environment, clock, log }
            })
            .collect();
        let cluster = Self { processes, folder, http: reqwest::Client::new(), _janitor: janitor };
        cluster.processes.iter().for_each(Process::start);
        for process in &cluster.processes {
            cluster.until_ready(process).await;
        }
        cluster
    }

    /// The shared volume.
    #[must_use]
    pub fn volume(&self) -> PathBuf {
        self.folder.path().join("volume")
    }

    /// A folder for the test's own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The processes of one service.
    pub fn of(&self, service: &str) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(move |process| process.service == service)
    }

    /// Waits until a process says that it is ready.
    pub async fn until_ready(&self, process: &Process) {
        let url = format!("{}/readyz", process.url());
        let began = Instant::now();
        while !self.http.get(&url).send().await.is_ok_and(|answer| answer.status() == StatusCode::OK) {
            assert!(began.elapsed() < PATIENCE, "{process:?} is not ready: {}", process.last_words());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A request to the first pre, as a user.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let pre = self.of("pre").next().expect("a pre");
        self.http.request(method, format!("{}{path}", pre.url())).bearer_auth(API_TOKEN)
    }

    /// Uploads a file as the raw body of `POST /v1/jobs`, with options in the query (`?every=2`); the job's id. Tries
    /// again while pre does not answer.
    pub async fn upload(&self, file: &Path, options: &str) -> String {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let bytes = fs::read(file).unwrap();
        // The same key each time: one job, whichever try arrives.
        let key = format!("{name}-{:?}", Instant::now());
        let began = Instant::now();
        loop {
            let sent = self
                .request(reqwest::Method::POST, &format!("/v1/jobs{options}"))
                .header("idempotency-key", &key)
                .header("content-type", "video/mp4")
                .header("content-disposition", format!("attachment; filename=\"{name}\""))
                .body(bytes.clone())
                .send()
                .await;
            match sent {
                Ok(answer) if answer.status() == StatusCode::ACCEPTED => {
                    let job: Value = answer.json().await.unwrap();
                    return job["id"].as_str().expect("an id").to_owned();
                }
                Ok(answer) if !answer.status().is_server_error() => {
                    panic!("{}: {}", answer.status(), answer.text().await.unwrap_or_default())
                }
                answer => assert!(began.elapsed() < PATIENCE, "{answer:?}"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// One try to upload `bytes` to pre number `pre`; what it answers.
    pub async fn try_upload(&self, pre: usize, bytes: Vec<u8>, options: &str) -> reqwest::Result<StatusCode> {
        let url = self.of("pre").nth(pre).expect("such a pre").url();
        let sent = self.http.post(format!("{url}/v1/jobs{options}")).bearer_auth(API_TOKEN);
        Ok(sent.header("content-type", "video/mp4").body(bytes).send().await?.status())
    }

    /// `GET path` as JSON; nothing while pre does not answer.
    pub async fn try_get(&self, path: &str) -> Option<Value> {
        let answer = self.request(reqwest::Method::GET, path).send().await.ok()?;
        answer.error_for_status().ok()?.json().await.ok()
    }

    /// Waits until the job has ended; its document.
    pub async fn until_ended(&self, id: &str, patience: Duration) -> Value {
        let began = Instant::now();
        loop {
            let job = self.try_get(&format!("/v1/jobs/{id}")).await.unwrap_or_default();
            let status = job["status"].as_str().unwrap_or_default();
            if status.ends_with("ERROR") || status == "CANCELLED" || status == "POSTPROCESSING_COMPLETE" {
                return job;
            }
            assert!(began.elapsed() < patience, "not ended: {job}\n{}", self.last_words());
            tokio::time::sleep(LOOK_AGAIN * 4).await;
        }
    }

    /// The end of every process's log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let said = self.processes.iter().map(|process| format!("{process:?}:\n{}", process.last_words()));
        said.collect::<Vec<_>>().join("\n")
    }

    /// Everything all processes have logged, line by line, as JSON.
    #[must_use]
    pub fn logs(&self) -> Vec<Value> {
        let texts = self.processes.iter().map(|process| fs::read_to_string(&process.log).unwrap_or_default());
        texts
            .flat_map(|text| {
                text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>()
            })
            .collect()
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.service, self.number)
    }
}

impl Process {
    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What the program's own health check says of it, as a container's would.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let mut check = Command::new(program(self.service));
        check.arg("health").env("BOXREEL_LISTEN", format!("127.0.0.1:{}", self.port));
        check.stderr(Stdio::null()).status().unwrap().success()
    }

    /// Starts it, unless it runs.
    pub fn start(&self) {
        let mut child = self.child();
        if child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return;
        }
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(program(self.service));
        without_settings(&mut command).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if self.clock != 0 {
            crate::set_clock_off(&mut command, self.clock);
        }
        *child = Some(spawn_kept(command).unwrap());
    }

    /// Also after a test has failed with it in hand.
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its process id; it must run.
    #[must_use]
    pub fn id(&self) -> i32 {
        let child = self.child();
        libc::pid_t::try_from(child.as_ref().expect("it runs").id()).unwrap()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP: it does nothing, and keeps all it holds.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT: it goes on where it was.
    pub fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    /// SIGTERM, and waits until it has ended.
    pub fn terminate(&self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        let mut child = self.child().take().expect("it runs");
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "{self:?} does not end: {}", self.last_words());
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&self) -> bool {
        let mut child = self.child();
        child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn signal(&self, signal: i32) {
        let child = self.child();
        if let Some(child) = &*child {
            // SAFETY: kill is a plain system call, and the child is not reaped while the lock is held.
            unsafe { libc::kill(libc::pid_t::try_from(child.id()).unwrap(), signal) };
        }
    }

    /// The end of its log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Takes the settings that this process was started with, if any, from `command`'s environment.
pub fn without_settings(command: &mut Command) -> &mut Command {
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| name.to_string_lossy().starts_with("BOXREEL_")) {
        command.env_remove(name);
    }
    command
}

/// A program of the house, built beside the test: `cargo test --workspace` builds the programs of all packages that
/// have integration tests.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).expect("target/debug/deps").join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace`", path.display());
    path
}

/// Runs FFmpeg's command line quietly; it must succeed.
pub fn ffmpeg(folder: &Path, arguments: &str) -> io::Result<()> {
    let output = Command::new("ffmpeg")
        .current_dir(folder)
        .args(["-v", "error", "-nostdin", "-y"])
        .args(arguments.split_whitespace())
        .output()?;
    assert!(output.status.success(), "ffmpeg {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A moving test picture of `frames` frames at 25 a second, with a tone.
#[must_use]
pub fn clip(folder: &Path, name: &str, frames: u32) -> PathBuf {
    let seconds = f64::from(frames) / 25.0;
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i testsrc2=size=320x240:rate=25:duration={seconds} -f lavfi -i sine=frequency=440:duration={seconds} \
             -c:v libx264 -preset ultrafast -g 50 -bf 2 -pix_fmt yuv420p -c:a aac -frames:v {frames} {name}"
        ),
    )
    .expect("the ffmpeg command is installed by scripts/setup.sh");
    folder.join(name)
}

/// A digest of every decoded frame of a video.
#[must_use]
pub fn pixels(file: &Path) -> String {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-xerror", "-nostdin", "-i"])
        .arg(file)
        .args(["-map", "0:v", "-f", "framemd5", "-"])
        .output()
        .expect("the ffmpeg command is installed by scripts/setup.sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
