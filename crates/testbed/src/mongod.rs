//! Real MongoDB servers.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use mongodb::Client;
use mongodb::bson::Document;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::kept::{Janitor, removed_in_the_end, spawn_kept};

/// How long a server may take to start or to be elected on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How a server is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A user and a password, without which the server does nothing.
    pub login: Option<(String, String)>,
    /// The name of the replica set it belongs to.
    replica_set: Option<String>,
}

/// One mongod with a folder of its own, on a free port of the loopback address. Killed and removed when dropped.
pub struct Mongod {
    process: Mutex<Option<Child>>,
    port: u16,
    options: Options,
    folder: TempDir,
    _janitor: Janitor,
}

impl Mongod {
    /// A server that stands alone and asks for no password.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// A server that asks for `user` and `password`.
    #[must_use]
    pub fn start_with_login(user: &str, password: &str) -> Self {
        let login = Some((user.to_owned(), password.to_owned()));
        let server = Self::start_with(Options { login, ..Options::default() });
        // The first user may be made from the same machine without a password.
        let roles = json!([{ "role": "root", "db": "admin" }]);
        let made = json!({ "createUser": user, "pwd": password, "roles": roles });
        run(&format!("mongodb://127.0.0.1:{}/?directConnection=true", server.port), "admin", &made);
        server
    }

    /// The one server that the tests of this process share; each takes a [`Mongod::fresh_database`].
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Mongod> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start_with(options: Options) -> Self {
        let folder = tempfile::Builder::new().prefix("boxreel-mongod-").tempdir().unwrap();
        let janitor = removed_in_the_end(folder.path());
        // Between finding a port free and listening on it somebody else may take it.
        for _ in 0..10 {
            let port = crate::free_port();
            if let Some(child) = spawn(folder.path(), port, &options) {
                return Self { process: Mutex::new(Some(child)), port, options, folder, _janitor: janitor };
            }
        }
        panic!("mongod does not start: {}", log_end(folder.path()));
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How a client reaches this one server, with the login it asks for.
    #[must_use]
    pub fn uri(&self) -> String {
        let login = self
            .options
            .login
            .as_ref()
            .map_or(String::new(), |(user, password)| format!("{user}:{password}@"));
        format!("mongodb://{login}127.0.0.1:{}/?directConnection=true", self.port)
    }

    /// A name of a database nobody has used.
    #[must_use]
    pub fn fresh_database(&self) -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs a command of MongoDB and returns the answer, both in MongoDB's extended JSON.
    pub fn command(&self, database: &str, command: &Value) -> Value {
        run(&self.uri(), database, command)
    }

    /// All documents of a collection that `filter` fits.
    #[must_use]
    pub fn find(&self, database: &str, collection: &str, filter: &Value) -> Vec<Value> {
        let answer =
            self.command(database, &json!({ "find": collection, "filter": filter, "batchSize": 100_000 }));
        answer["cursor"]["firstBatch"].as_array().expect("a first batch").clone()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) {
        if let Some(mut child) = self.process.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same folder and port after [`Mongod::kill`].
    pub fn restart(&self) {
        self.kill();
        let began = Instant::now();
        loop {
            if let Some(child) = spawn(self.folder.path(), self.port, &self.options) {
                *self.process.lock().unwrap() = Some(child);
                return;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "mongod does not start again: {}",
                log_end(self.folder.path())
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// SIGSTOP: it neither works nor answers, but its connections stay.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT: it goes on where it was, and does what it was asked meanwhile.
    pub fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        let process = self.process.lock().unwrap();
        let pid = process.as_ref().expect("it runs").id();
        // SAFETY: kill is a plain system call, and the child is not reaped while the lock is held.
        let sent = unsafe { libc::kill(libc::pid_t::try_from(pid).unwrap(), signal) };
        assert_eq!(sent, 0);
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three servers that elect a primary.
pub struct ReplicaSet {
    nodes: Vec<Mongod>,
}

impl ReplicaSet {
    const NAME: &str = "boxreel";

    /// Starts them, and waits until one is the primary and the others follow it.
    #[must_use]
    pub fn start() -> Self {
        let options = Options { replica_set: Some(Self::NAME.to_owned()), ..Options::default() };
        let nodes: Vec<_> = (0..3).map(|_| Mongod::start_with(options.clone())).collect();
        let members: Vec<_> = nodes
            .iter()
            .zip(0..)
            .map(|(node, id)| json!({ "_id": id, "host": format!("127.0.0.1:{}", node.port) }))
            .collect();
        // Fail-over in two seconds instead of ten: tests wait for it.
        let settings = json!({ "electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500 });
        let config = json!({ "_id": Self::NAME, "members": members, "settings": settings });
        nodes[0].command("admin", &json!({ "replSetInitiate": config }));
        let set = Self { nodes };
        set.primary();
        set.until("all follow", |states| states.iter().filter(|state| **state == 2).count() == 2);
        set
    }

    /// How a client reaches the set.
    #[must_use]
    pub fn uri(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("mongodb://{}/?replicaSet={}", hosts.join(","), Self::NAME)
    }

    /// Its servers.
    #[must_use]
    pub fn nodes(&self) -> &[Mongod] {
        &self.nodes
    }

    /// The server that is the primary; waits until there is one.
    pub fn primary(&self) -> &Mongod {
        let began = Instant::now();
        loop {
            let is_primary = |node: &&Mongod| {
                let uri = format!("{}&serverSelectionTimeoutMS=500", node.uri());
                try_run(&uri, "admin", &json!({ "hello": 1 }))
                    .is_ok_and(|hello| hello["isWritablePrimary"] == json!(true))
            };
            let running = |node: &&Mongod| node.process.lock().unwrap().is_some();
            if let Some(node) = self.nodes.iter().filter(running).find(is_primary) {
                return node;
            }
            assert!(began.elapsed() < PATIENCE, "no primary is elected");
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until the members' states are such.
    fn until(&self, what: &str, wanted: impl Fn(&[i64]) -> bool) {
        let began = Instant::now();
        loop {
            let status = try_run(&self.nodes[0].uri(), "admin", &json!({ "replSetGetStatus": 1 }));
            let states: Vec<i64> = status
                .ok()
                .and_then(|status| {
                    let members = status["members"].as_array()?;
                    Some(members.iter().map(|member| int(&member["state"])).collect())
                })
                .unwrap_or_default();
            if wanted(&states) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "never: {what}");
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// A whole number of extended JSON.
fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or(-1)
}

/// The program: the one that `make test` fetches, or another of that name.
fn program() -> PathBuf {
    let path = std::env::var_os("BOXREEL_TEST_MONGOD").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/mongod/mongod"),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "there is no MongoDB server at {}: run `make test`, which fetches it, or scripts/fetch_mongod.sh alone",
        path.display()
    );
    path
}

/// Starts a server and waits until it takes connections; `None` if it ended instead.
fn spawn(folder: &Path, port: u16, options: &Options) -> Option<Child> {
    let mut command = Command::new(program());
    command.arg("--dbpath").arg(folder).arg("--logpath").arg(folder.join("log")).arg("--logappend");
    command.args(["--port", &port.to_string(), "--bind_ip", "127.0.0.1", "--nounixsocket"]);
    command.args(["--wiredTigerCacheSizeGB", "0.25", "--quiet"]);
    for parameter in
        ["enableTestCommands=1", "ttlMonitorSleepSecs=1", "diagnosticDataCollectionEnabled=false"]
    {
        command.args(["--setParameter", parameter]);
    }
    if let Some(name) = &options.replica_set {
        command.args(["--replSet", name, "--oplogSize", "64"]);
    }
    if options.login.is_some() {
        command.arg("--auth");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawn_kept(command).unwrap();
    let began = Instant::now();
    loop {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        // Its own log says that it listens: a stranger may listen on the port instead.
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        if log.rsplit("SERVER RESTARTED").next().is_some_and(|log| log.contains("Waiting for connections"))
            && TcpStream::connect(("127.0.0.1", port)).is_ok()
        {
            return Some(child);
        }
        assert!(began.elapsed() < PATIENCE, "mongod hangs while it starts: {}", log_end(folder));
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn log_end(folder: &Path) -> String {
    let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

fn run(uri: &str, database: &str, command: &Value) -> Value {
    try_run(uri, database, command).unwrap_or_else(|error| panic!("{command} failed: {error}"))
}

/// Runs a command on a runtime of its own: the caller may be in the middle of another, which this must not block
/// for ever, or in none.
fn try_run(uri: &str, database: &str, command: &Value) -> Result<Value, String> {
    let work = async {
        let command: Document = serde_json::from_value(command.clone()).map_err(|error| error.to_string())?;
        let client = Client::with_uri_str(uri).await.map_err(|error| error.to_string())?;
        let answer =
            client.database(database).run_command(command).await.map_err(|error| error.to_string())?;
        serde_json::to_value(answer).map_err(|error| error.to_string())
    };
    std::thread::scope(|scope| {
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
        scope.spawn(runtime).join().unwrap()
    })
}
