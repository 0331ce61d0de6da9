//! What only this implementation promises. The rest is in [`contract`](crate::store::contract).

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use async_trait::async_trait;
use tempfile::TempDir;

use rusqlite::StatementStatus;

use super::*;
use crate::clock::{ManualClock, SystemClock};
use crate::job::Plan;
use crate::segment::{Stage, State, Token};
use crate::store::Store;
use crate::store::contract::{House, cuts, film, new_job, plan, step};

struct OneFile {
    store: Arc<SqliteStore>,
    clock: Arc<ManualClock>,
    folder: TempDir,
}

impl OneFile {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let clock = Arc::new(ManualClock::new(Stamp(1_700_000_000_000_000)));
        let store = Arc::new(SqliteStore::open(&folder.path().join("jobs.db"), clock.clone()).unwrap());
        Self { store, clock, folder }
    }
}

#[async_trait]
impl House for OneFile {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// A second connection to the same file, as another process would have.
    fn another(&self) -> Arc<dyn Store> {
        let path = self.folder.path().join("jobs.db");
        Arc::new(SqliteStore::open(&path, self.clock.clone()).unwrap())
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

crate::contract_tests!(OneFile::new());

fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, Arc::new(SystemClock))
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_opening_again() {
    let house = OneFile::new();
    let id = film(&*house.store, 3).await;
    step(&*house.store, Stage::Decode).await;
    let (job, segments) = (house.store.job(id).await.unwrap(), house.store.segments(id).await.unwrap());
    let OneFile { store, folder, .. } = house;
    drop(store);
    let store = open(&folder.path().join("jobs.db")).unwrap();
    assert_eq!(store.job(id).await.unwrap(), job);
    assert_eq!(store.segments(id).await.unwrap(), segments);
    let connection = store.connection.lock().unwrap();
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
    assert_eq!((mode.as_str(), synchronous), ("wal", 2), "write-ahead log, FULL");
}

#[tokio::test]
async fn a_program_that_is_alone_need_not_wait_for_what_its_past_self_held() {
    let house = OneFile::new();
    film(&*house.store, 2).await;
    house.store.create_job(new_job()).await.unwrap();
    let request = |stage| ClaimRequest {
        stage,
        worker: "killed".to_owned(),
        token: Token::random(),
        lease: Duration::from_secs(30),
        model: None,
        pack_budget: None,
    };
    for stage in [Stage::Index, Stage::Decode, Stage::Decode] {
        assert!(house.store.claim(&request(stage)).await.unwrap().is_some());
    }
    for stage in [Stage::Index, Stage::Decode] {
        assert!(house.store.claim(&request(stage)).await.unwrap().is_none());
    }
    let NewJob { id, filename, settings, callback_url, .. } = new_job();
    let upload = NewUpload { id, filename, length: 10, settings, callback_url, metadata: String::new() };
    house.store.create_upload(upload).await.unwrap();
    let lock = || LockRequest {
        id,
        worker: "killed".to_owned(),
        token: Token::random(),
        lease: Duration::from_secs(30),
    };
    assert!(matches!(house.store.lock_upload(&lock()).await.unwrap(), Locking::Held(..)));
    assert_eq!(house.store.hand_back_all().await.unwrap(), 4);
    assert_eq!(house.store.hand_back_all().await.unwrap(), 0);
    for stage in [Stage::Index, Stage::Decode, Stage::Decode] {
        let claimed = house.store.claim(&request(stage)).await.unwrap().expect("claimable at once");
        assert_eq!(claimed.lease.attempt, 1);
    }
    assert!(matches!(house.store.lock_upload(&lock()).await.unwrap(), Locking::Held(..)));
}

#[tokio::test]
async fn a_file_of_the_first_version_is_brought_up_with_all_it_holds() {
    let house = OneFile::new();
    let id = film(&*house.store, 2).await;
    {
        let connection = house.store.connection.lock().unwrap();
        connection.execute_batch("DROP TABLE uploads; PRAGMA user_version = 1").unwrap();
    }
    for _ in 0..2 {
        let store = open(&house.folder.path().join("jobs.db")).unwrap();
        assert_eq!(store.segments(id).await.unwrap().len(), 2);
        assert_eq!(store.upload(id).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_full_disk_is_told_for_as_long_as_it_lasts() {
    let house = OneFile::new();
    let id = film(&*house.store, 3).await;
    assert!(house.store.refuses_writes().is_none());
    let pages =
        |most: u32| house.store.connection.lock().unwrap().pragma_update(None, "max_page_count", most);
    // Never below what is there: so the file cannot grow.
    pages(1).unwrap();
    let refused = async {
        for _ in 0..1000 {
            house.store.create_job(new_job()).await?;
        }
        Ok::<_, StoreError>(())
    };
    let error = refused.await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(why) if why == "the disk is full"), "{error}");
    let (first, why) = house.store.refuses_writes().unwrap();
    assert!(why.contains("the disk is full"), "{why}");
    house.store.create_job(new_job()).await.unwrap_err();
    assert!(house.store.job(id).await.unwrap().is_some(), "reading goes on");
    let nothing = ClaimRequest {
        stage: Stage::Assemble,
        worker: "idle".to_owned(),
        token: Token::random(),
        lease: Duration::from_secs(30),
        model: None,
        pack_budget: None,
    };
    assert!(house.store.claim(&nothing).await.unwrap().is_none(), "what writes nothing is not refused");
    let (again, _) = house.store.refuses_writes().unwrap();
    assert!(again >= first, "the time runs from the first refusal");
    pages(100_000).unwrap();
    house.store.create_job(new_job()).await.unwrap();
    assert!(house.store.refuses_writes().is_none());
}

#[test]
fn files_that_are_not_ours_are_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let newer = folder.path().join("newer.db");
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let foreign = folder.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE recipes (cake TEXT)").unwrap();
    let text = folder.path().join("text.db");
    std::fs::write(
        &text,
        "This is a letter to my aunt, and it is long enough to be taken for a file. ".repeat(9),
    )
    .unwrap();
    for (path, says) in [
        (&newer, "version 99"),
        (&foreign, "another program's database"),
        (&text, "no database of this program"),
    ] {
        let before = std::fs::read(path).unwrap();
        let error = open(path).err().expect("refused");
        assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
        assert!(error.to_string().contains(says) && error.to_string().contains(".db"), "{error}");
        assert_eq!(std::fs::read(path).unwrap(), before);
    }
    let error = open(&folder.path().join("missing/jobs.db")).err().expect("refused");
    assert!(matches!(&error, StoreError::Unavailable(what) if what.contains("missing/jobs.db")), "{error}");
}

#[tokio::test]
async fn several_may_open_a_new_file_at_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("jobs.db");
    let openers: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || open(&path).map(drop))
        })
        .collect();
    for opener in openers {
        opener.join().unwrap().unwrap();
    }
}

#[test]
fn no_claim_scans_or_sorts() {
    let house = OneFile::new();
    let connection = house.store.connection.lock().unwrap();
    for query in
        [work::NEXT_SEGMENT, work::NEXT_SEGMENT_OF_MODEL, work::NEXT_JOB, work::PACKS, work::BY_TOKEN]
    {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().unwrap() {
            let step: String = row.get("detail").unwrap();
            assert!(!step.starts_with("SCAN"), "{step} in {query}");
            assert!(!step.contains("TEMP B-TREE"), "{step} in {query}");
        }
    }
}

/// Steps of SQLite's machine that finding the next segment takes.
fn steps(store: &SqliteStore) -> i32 {
    let connection = store.connection.lock().unwrap();
    let mut statement = connection.prepare(work::NEXT_SEGMENT).unwrap();
    let now = i64::MAX;
    let found: Option<u32> = statement
        .query_row(rusqlite::named_params! { ":stage": "decode", ":now": now, ":worker": "w" }, |row| {
            row.get(1)
        })
        .ok();
    assert!(found.is_some());
    statement.get_status(StatementStatus::VmStep)
}

#[tokio::test]
async fn a_claim_costs_the_same_in_a_full_table() {
    let house = OneFile::new();
    film(&*house.store, 5).await;
    let few = steps(&house.store);
    // Waiting ones, done ones, and those of jobs that are over.
    film(&*house.store, 600).await;
    for _ in 0..50 {
        for stage in [Stage::Decode, Stage::Detect, Stage::Render] {
            step(&*house.store, stage).await;
        }
    }
    let cancelled = film(&*house.store, 600).await;
    house.store.cancel(cancelled).await.unwrap();
    let many = steps(&house.store);
    assert!(many <= few + 5, "{few} steps among 5 segments, {many} among 1205");
}

// --- kill -9 --------------------------------------------------------------------------------------------

const VICTIM: &str = "BOXREEL_TEST_VICTIM";

/// Not a test: what the process does that the next test kills. Works until then.
#[tokio::test]
#[ignore = "started by another test, as a process of its own"]
async fn victim() {
    let Some(path) = std::env::var_os(VICTIM).map(PathBuf::from) else { return };
    let store = open(&path).unwrap();
    for round in 0.. {
        let id = JobId::new(Stamp(round));
        store.create_job(NewJob { id, ..new_job() }).await.unwrap();
        let request = ClaimRequest {
            stage: Stage::Index,
            worker: "victim".to_owned(),
            token: Token::random(),
            lease: Duration::from_secs(3600),
            model: None,
            pack_budget: None,
        };
        let claimed = store.claim(&request).await.unwrap().unwrap();
        store.put_segments(&claimed.lease, &cuts(50)).await.unwrap();
        store.advance(claimed.lease, Output::Indexed(plan(50))).await.unwrap();
        for stage in [Stage::Decode, Stage::Detect, Stage::Render] {
            step(&store, stage).await;
        }
        println!("acknowledged {id}");
        if round == 2 {
            // Half of a call is written; the parent kills us before the other half.
            store
                .write(move |tx, _| {
                    tx.execute("DELETE FROM segments WHERE number > 10", [])?;
                    println!("inside");
                    loop {
                        std::thread::park();
                    }
                    #[expect(unreachable_code, reason = "it is killed here")]
                    Ok(())
                })
                .await
                .unwrap();
        }
    }
}

#[tokio::test]
async fn a_process_killed_while_writing_leaves_whole_calls() {
    // At the marked place, and after so many lines: somewhere in the work on the next job.
    for kill_after in [None, Some(1), Some(2)] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("jobs.db");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::sqlite::tests::victim", "--ignored", "--nocapture", "--test-threads=1"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut acknowledged = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(id) = line.split("acknowledged ").nth(1) {
                acknowledged.push(id.parse::<JobId>().unwrap());
            }
            if line.contains("inside") || Some(acknowledged.len()) == kill_after {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let store = open(&path).unwrap();
        let check: String = {
            let connection = store.connection.lock().unwrap();
            connection.pragma_query_value(None, "integrity_check", |row| row.get(0)).unwrap()
        };
        assert_eq!(check, "ok");
        assert!(!acknowledged.is_empty());
        for id in acknowledged {
            let counts = store.counts(id).await.unwrap();
            assert_eq!((counts.total(), counts.done), (50, 1), "what was acknowledged is there");
        }
        for job in store.jobs(None, 100, &[]).await.unwrap() {
            let counts = store.counts(job.id).await.unwrap();
            match job.state {
                State::Waiting(Stage::Index) => {
                    assert!(counts.total() == 0 || counts.held == 50, "{counts:?}");
                }
                _ => assert_eq!((counts.total(), counts.held), (50, 0), "all of a release or nothing"),
            }
            assert_eq!(
                job.plan.as_ref().map(|plan: &Plan| plan.segments),
                (counts.held == 0 && counts.total() > 0).then_some(50)
            );
        }
        assert!(step(&store, Stage::Decode).await.is_some(), "and work goes on");
    }
}
