//! Servers that hang, die, ask for a password; clients whose clock is wrong.

use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::*;
use crate::store::contract::{film, new_job, step};

fn request(stage: Stage) -> ClaimRequest {
    ClaimRequest {
        stage,
        worker: "w".to_owned(),
        token: Token::random(),
        lease: LEASE,
        model: None,
        pack_budget: None,
    }
}

async fn connect(server: &Mongod, database: &str) -> MongoStore {
    MongoStore::connect(&server.uri(), database).await.unwrap()
}

fn unavailable<T>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable(what)) => what,
        Err(StoreError::Corrupt(what)) => panic!("{what}"),
        Ok(_) => panic!("it should not have answered"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_the_death_of_the_server() {
    let server = Mongod::start();
    let store = connect(&server, "boxreel").await;
    let id = film(&store, 3).await;
    step(&store, Stage::Decode).await;
    let before = (store.job(id).await.unwrap(), store.segments(id).await.unwrap());
    server.kill();
    let began = Instant::now();
    unavailable(store.claim(&request(Stage::Decode)).await);
    assert!(began.elapsed() < ANSWER + SELECTION, "an outage is said soon: {:?}", began.elapsed());
    assert!(MongoStore::connect(&server.uri(), "boxreel").await.is_err());
    server.restart();
    let after = (store.job(id).await.unwrap(), store.segments(id).await.unwrap());
    assert_eq!(after, before, "the same client goes on, and nothing is lost");
    assert!(step(&store, Stage::Decode).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_a_server_that_hangs_is_made_once() {
    let server = Mongod::start();
    let store = connect(&server, "boxreel").await;
    let id = film(&store, 3).await;
    let asked = request(Stage::Decode);
    server.pause();
    let began = Instant::now();
    unavailable(store.claim(&asked).await);
    assert!(began.elapsed() < ANSWER * 2, "{:?}", began.elapsed());
    // The server does now what it was asked while it hung, and is asked again with the same token.
    server.go_on();
    let mut claimed = store.claim(&asked).await;
    while let Err(StoreError::Unavailable(_)) = claimed {
        claimed = store.claim(&asked).await;
    }
    assert!(claimed.unwrap().is_some());
    server.until_idle("boxreel");
    let held: Vec<_> =
        store.segments(id).await.unwrap().into_iter().filter_map(|segment| segment.lease).collect();
    assert_eq!(held.iter().map(|lease| &lease.token).collect::<Vec<_>>(), [&asked.token], "one claim");
}

#[tokio::test]
async fn a_late_copy_of_a_claim_takes_nothing() {
    let house = OneDatabase::new().await;
    let id = film(&*house.store, 3).await;
    let asked = request(Stage::Decode);
    let claimed = house.store.claim(&asked).await.unwrap().unwrap();
    // The other store has never heard of this token: it goes straight to the claim, as a late copy does.
    let again = house.other.claim(&asked).await.unwrap().unwrap();
    assert_eq!(again.lease, claimed.lease);
    let output = crate::store::contract::output(Stage::Decode, &claimed.lease.token);
    assert_eq!(house.store.advance(claimed.lease, output).await.unwrap(), Advanced::Recorded);
    let (uri, database) = (Mongod::shared().uri(), house.store.database.name());
    let late = MongoStore::with_clock(&uri, database, house.clock.clone()).await.unwrap();
    assert!(late.claim(&asked).await.unwrap().is_none());
    let leases =
        house.store.segments(id).await.unwrap().into_iter().filter(|segment| segment.lease.is_some());
    assert_eq!(leases.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_sent_and_a_wrong_one_is_said() {
    let server = Mongod::start_with_login("boxreel", "s3cret&");
    let store = MongoStore::connect(&server.uri(), "boxreel").await.unwrap();
    film(&store, 1).await;
    assert!(step(&store, Stage::Decode).await.is_some());
    let wrong = server.uri().replace("s3cret", "guessed");
    let refused = unavailable(MongoStore::connect(&wrong, "boxreel").await);
    assert!(refused.to_lowercase().contains("auth"), "{refused}");
    assert!(!refused.contains("guessed"), "the password is nobody's to read: {refused}");
    let without = format!("mongodb://127.0.0.1:{}/", server.port());
    unavailable(MongoStore::connect(&without, "boxreel").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_may_be_encrypted() {
    let (server, authority) = Mongod::start_with_tls();
    let uri = format!("mongodb://localhost:{}/?tls=true&tlsCAFile={}", server.port(), authority.display());
    let store = MongoStore::connect(&uri, "boxreel").await.unwrap();
    film(&store, 1).await;
    assert!(step(&store, Stage::Decode).await.is_some());
    unavailable(MongoStore::connect(&format!("mongodb://localhost:{}/?tls=true", server.port()), "x").await);
    unavailable(MongoStore::connect(&format!("mongodb://localhost:{}/", server.port()), "x").await);
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let house = OneDatabase::new().await;
    let id = film(&*house.store, 1).await;
    let any = doc! {};
    house.store.segments.update_one(any.clone(), doc! { "$set": { "state": "asleep" } }).await.unwrap();
    let error = house.store.segments(id).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Corrupt(what) if what.contains("asleep") && what.contains("/0.")),
        "{error}"
    );
    house.store.requests.update_one(any, doc! { "$unset": { "FILENAME": 1 } }).await.unwrap();
    let error = house.store.job(id).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Corrupt(what) if what.contains("FILENAME") && what.contains(&id.to_string())),
        "{error}"
    );
}

#[tokio::test]
async fn a_job_reads_as_the_original_wrote_it() {
    let house = OneDatabase::new().await;
    let id = film(&*house.store, 1).await;
    house.pass(Duration::from_millis(218_918)).await;
    for stage in [Stage::Decode, Stage::Detect, Stage::Render, Stage::Assemble] {
        assert!(step(&*house.store, stage).await.is_some());
    }
    house.store.reconcile(id).await.unwrap();
    let found = house.store.requests.find_one(doc! {}).await.unwrap().unwrap();
    let keys: Vec<_> = found.keys().take(12).map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "_id",
            "FILENAME",
            "STATUS",
            "PROCESS_START",
            "PREPROCESSING_START",
            "PREPROCESSING_END",
            "INFERENCE_START",
            "INFERENCE_END",
            "POSTPROCESSING_START",
            "POSTPROCESSING_END",
            "PROCESS_END",
            "TOTAL",
        ]
    );
    assert_eq!(found.get_object_id("_id").unwrap().to_string(), id.to_string());
    assert_eq!(found.get_str("STATUS").unwrap(), "POSTPROCESSING_COMPLETE");
    assert_eq!(found.get_str("FILENAME").unwrap(), new_job().filename);
    assert_eq!(found.get_str("TOTAL").unwrap(), "0:03:38.918000");
    for key in &keys[3..11] {
        assert!(found.get_datetime(key).is_ok(), "{key} is a date");
    }
}

// --- clocks ---------------------------------------------------------------------------------------------

const CHILD: &str = "BOXREEL_TEST_CLOCK_CHILD";

fn wall_clock() -> Stamp {
    #[expect(clippy::disallowed_methods, reason = "the clock that is wrong is what is tested")]
    let now = SystemTime::now();
    Stamp(0).after(now.duration_since(UNIX_EPOCH).unwrap())
}

/// Not a test: a worker whose clock is wrong, as a process of its own. It claims two segments, and finishes one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test, as a process of its own"]
async fn worker_with_a_wrong_clock() {
    let Ok(uri) = std::env::var(CHILD) else { return };
    let store = MongoStore::connect(&uri, "boxreel").await.unwrap();
    let now = Upkeep::now(&store).await.unwrap();
    println!("off by {} s", (wall_clock().0 - now.0) / 1_000_000);
    let held = store.claim(&request(Stage::Decode)).await.unwrap().unwrap();
    assert!(step(&store, Stage::Decode).await.is_some());
    assert_eq!(store.renew(&held.lease, LEASE).await.unwrap(), Renewal::Held);
    assert_eq!(store.report(held.job.id, Status::Preprocessing).await.unwrap(), Reported::Stamped);
    println!("holds {}", held.lease.token);
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_of_clients_do_not_matter() {
    let server = Mongod::start();
    let store = connect(&server, "boxreel").await;
    for off in [3600, -3600] {
        let began = Upkeep::now(&store).await.unwrap();
        let id = film(&store, 3).await;
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "store::mongo::tests::faults::worker_with_a_wrong_clock",
                "--ignored",
                "--nocapture",
            ])
            .env(CHILD, server.uri())
            .stdin(Stdio::null());
        testbed::set_clock_off(&mut command, off);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let seconds: i64 = said.split("off by ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!((seconds - off).abs() < 60, "the child's clock is wrong indeed: {seconds}");
        let token: Token = said.split("holds ").nth(1).unwrap().trim()[..32].parse().unwrap();
        let ended = Upkeep::now(&store).await.unwrap();
        // What it holds is held for one lease of the server's time, neither an hour more nor less.
        let segments = store.segments(id).await.unwrap();
        let lease = segments.iter().find_map(|segment| segment.lease.clone()).unwrap();
        assert_eq!(lease.token, token);
        assert!(lease.expires >= began.after(LEASE) && lease.expires <= ended.after(LEASE), "{lease:?}");
        let other = store.claim(&request(Stage::Decode)).await.unwrap().unwrap();
        assert_eq!(other.segment.unwrap().index, 2, "what it holds is not claimable");
        assert!(store.claim(&request(Stage::Decode)).await.unwrap().is_none());
        let timeline = store.job(id).await.unwrap().unwrap().timeline;
        let stamped = timeline.preprocessing_start.unwrap();
        assert!(began <= timeline.process_start && timeline.process_start <= stamped && stamped <= ended);
        store.cancel(id).await.unwrap();
    }
}
