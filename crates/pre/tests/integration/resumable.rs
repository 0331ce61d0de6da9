//! Uploads that break off and go on, at whichever pre, as any tus client sends them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::job::JobId;
use common::segment::Token;
use common::store::{LockRequest, Locking, UPLOAD_KEPT, UploadState};
use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use pre::sweep::Sweeper;
use reqwest::{Body, RequestBuilder, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::house::{LEASE, TestApp, json};

const VIDEO: &[u8] = b"a video of bikes in the rain";
const BYTES: &str = "application/offset+octet-stream";
/// filename "Räder.mp4", keep_frames "false", every "2", classes "car,person".
const METADATA: &str = "filename UsOkZGVyLm1wNA==,filetype dmlkZW8vbXA0,keep_frames ZmFsc2U=,every Mg==,classes Y2FyLHBlcnNvbg==";

fn tus(house: &TestApp, method: &str, path: &str) -> RequestBuilder {
    house.request(method, path).header("Tus-Resumable", "1.0.0")
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn expect(answer: &Response, status: u16) {
    assert_eq!(answer.status(), status, "{:?}", answer.headers());
    assert_eq!(header(answer, "tus-resumable"), "1.0.0");
}

/// Begins an upload of [`VIDEO`]; its path.
async fn begin(house: &TestApp) -> String {
    let length = VIDEO.len().to_string();
    let request = tus(house, "POST", "/v1/uploads").header("Upload-Length", length);
    let answer = request.header("Upload-Metadata", METADATA).send().await.unwrap();
    expect(&answer, 201);
    header(&answer, "location").to_owned()
}

fn id_of(path: &str) -> JobId {
    path.strip_prefix("/v1/uploads/").unwrap().parse().unwrap()
}

fn patch(house: &TestApp, path: &str, offset: usize, body: impl Into<Body>) -> RequestBuilder {
    let request = tus(house, "PATCH", path).header("Content-Type", BYTES);
    request.header("Upload-Offset", offset.to_string()).body(body)
}

async fn append(house: &TestApp, path: &str, offset: usize, body: &'static [u8]) -> Response {
    patch(house, path, offset, body).send().await.unwrap()
}

/// How far the upload is.
async fn offset(house: &TestApp, path: &str) -> usize {
    let answer = tus(house, "HEAD", path).send().await.unwrap();
    expect(&answer, 200);
    assert_eq!(header(&answer, "cache-control"), "no-store");
    header(&answer, "upload-offset").parse().unwrap()
}

/// A body that ends when the sender is dropped.
fn trickle() -> (tokio::sync::mpsc::Sender<&'static [u8]>, Body) {
    let (sender, receiver) = tokio::sync::mpsc::channel::<&'static [u8]>(1);
    let bytes = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    (sender, Body::wrap_stream(bytes.map(Ok::<_, std::io::Error>)))
}

/// A PATCH from the beginning of an upload, whose body goes on until the sender is dropped.
type Sending = (tokio::sync::mpsc::Sender<&'static [u8]>, JoinHandle<reqwest::Result<Response>>);

/// Begins to send, with these bytes.
async fn sending(house: &TestApp, path: &str, bytes: &'static [u8]) -> Sending {
    let (sender, body) = trickle();
    let answer = tokio::spawn(patch(house, path, 0, body).send());
    sender.send(bytes).await.unwrap();
    (sender, answer)
}

/// Waits until so many bytes of uploads have been received.
async fn received(house: &TestApp, bytes: usize) {
    let line = format!("boxreel_upload_received_bytes_total {bytes}\n");
    while !house.get("/metrics").await.text().await.unwrap().contains(&line) {
        tokio::task::yield_now().await;
    }
}

/// Sends the head of a PATCH and some bytes of its body over a connection that then breaks.
async fn break_off(house: &TestApp, path: &str, offset: usize, bytes: &[u8], more: &str) {
    let mut connection = TcpStream::connect(house.base.strip_prefix("http://").unwrap()).await.unwrap();
    let rest = VIDEO.len() - offset;
    let head = format!(
        "PATCH {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nContent-Type: {BYTES}\r\nUpload-Offset: {offset}\r\n\
         Content-Length: {rest}\r\n{more}\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(bytes).await.unwrap();
    connection.shutdown().await.unwrap();
    // The answer comes when what arrived has been dealt with.
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer).await;
    released(house, id_of(path)).await;
}

/// Waits until nobody writes the upload.
async fn released(house: &TestApp, id: JobId) {
    while let Some(upload) = house.store.upload(id).await.unwrap()
        && matches!(upload.state, UploadState::Receiving { writer: Some(_), .. })
    {
        tokio::task::yield_now().await;
    }
}

async fn hold(house: &TestApp, path: &str) -> common::store::UploadLock {
    let request =
        LockRequest { id: id_of(path), worker: "pre-2".to_owned(), token: Token::random(), lease: LEASE };
    match house.store.lock_upload(&request).await.unwrap() {
        Locking::Held(lock, _) => lock,
        other => panic!("the lock should be free: {other:?}"),
    }
}

async fn jobs(house: &TestApp) -> usize {
    house.store.jobs(None, 100, &[]).await.unwrap().len()
}

#[tokio::test]
async fn what_the_server_can_do_is_told() {
    let house = TestApp::start_with(&["--max-upload", "1000"]).await;
    let answer = house.request("OPTIONS", "/v1/uploads").send().await.unwrap();
    expect(&answer, 204);
    assert_eq!(header(&answer, "tus-version"), "1.0.0");
    assert_eq!(header(&answer, "tus-max-size"), "1000");
    assert_eq!(header(&answer, "tus-checksum-algorithm"), "sha1,sha256,sha512");
    let extensions = "creation,creation-with-upload,expiration,checksum,termination";
    assert_eq!(header(&answer, "tus-extension"), extensions);
}

#[tokio::test]
async fn an_upload_goes_on_at_another_pre_and_becomes_a_job_like_any_other() {
    let house = TestApp::start().await;
    let other = house.another().await;
    let path = begin(&house).await;
    let first = append(&house, &path, 0, &VIDEO[..10]).await;
    expect(&first, 204);
    assert_eq!((header(&first, "upload-offset"), header(&first, "boxreel-job")), ("10", ""));
    assert_eq!(header(&first, "upload-expires"), "Wed, 15 Nov 2023 22:13:20 GMT");

    let asked = tus(&other, "HEAD", &path).send().await.unwrap();
    expect(&asked, 200);
    assert_eq!((header(&asked, "upload-offset"), header(&asked, "upload-length")), ("10", "28"));
    assert_eq!(header(&asked, "upload-metadata"), METADATA);
    assert_eq!(jobs(&house).await, 0, "half an upload is no job");

    let last = append(&other, &path, 10, &VIDEO[10..]).await;
    expect(&last, 204);
    let id = id_of(&path);
    assert_eq!((header(&last, "upload-offset"), header(&last, "boxreel-job")), ("28", &*id.to_string()));
    house.expect_status(id, "ENQUEUE").await;
    let job = house.store.job(id).await.unwrap().unwrap();
    assert_eq!(
        (job.filename.as_str(), job.settings.every, job.settings.keep_frames),
        ("Räder.mp4", 2, false)
    );
    assert_eq!((job.settings.classes, job.source.size), (vec![0, 2], 28));
    assert_eq!(std::fs::read(house.volume.upload(id)).unwrap(), VIDEO);
    assert!(!house.volume.partial(id).exists() && house.volume.job(id).subfolder("pack").is_dir());
    house.finish(1).await;
    house.expect_status(id, "POSTPROCESSING_COMPLETE").await;
}

#[tokio::test]
async fn the_last_bytes_sent_again_make_no_second_job() {
    let house = TestApp::start().await;
    let other = house.another().await;
    let path = begin(&house).await;
    append(&house, &path, 0, VIDEO).await;
    // Its answer was lost: the sender repeats it, or asks, or sends the nothing that is left.
    expect(&append(&other, &path, 0, VIDEO).await, 409);
    assert_eq!(offset(&other, &path).await, VIDEO.len());
    let nothing = append(&other, &path, VIDEO.len(), b"").await;
    expect(&nothing, 204);
    assert_eq!(header(&nothing, "boxreel-job"), id_of(&path).to_string());
    assert_eq!(jobs(&house).await, 1);
    // The job is deleted by its own address, and stays so.
    let terminated = json(tus(&house, "DELETE", &path).send().await.unwrap(), 409).await;
    assert!(terminated["error"]["message"].as_str().unwrap().contains("became job"));
    house.request("DELETE", &format!("/v1/jobs/{}", id_of(&path))).send().await.unwrap();
    house.clock.advance(LEASE * 2);
    Sweeper::default().sweep(&house.app).await.unwrap();
    expect(&append(&other, &path, VIDEO.len(), b"").await, 204);
    assert!(house.store.job(id_of(&path)).await.unwrap().is_none());
}

#[tokio::test]
async fn what_came_before_the_connection_broke_counts() {
    let house = TestApp::start().await;
    let path = begin(&house).await;
    break_off(&house, &path, 0, &VIDEO[..7], "").await;
    assert_eq!(offset(&house, &path).await, 7);
    break_off(&house, &path, 7, &VIDEO[7..9], "").await;
    assert_eq!(offset(&house, &path).await, 9);
    // With a checksum the whole chunk counts or nothing of it.
    break_off(&house, &path, 9, &VIDEO[9..20], "Upload-Checksum: sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=\r\n")
        .await;
    assert_eq!(offset(&house, &path).await, 9);
    expect(&append(&house, &path, 9, &VIDEO[9..]).await, 204);
    assert_eq!(std::fs::read(house.volume.upload(id_of(&path))).unwrap(), VIDEO);
}

#[tokio::test]
async fn bytes_that_were_written_but_never_counted_are_written_over() {
    let house = TestApp::start().await;
    let path = begin(&house).await;
    append(&house, &path, 0, &VIDEO[..5]).await;
    // A pre was killed between writing and counting.
    let mut torn = VIDEO[..5].to_vec();
    torn.extend(b"######");
    std::fs::write(house.volume.partial(id_of(&path)), torn).unwrap();
    assert_eq!(offset(&house, &path).await, 5);
    expect(&append(&house, &path, 5, &VIDEO[5..8]).await, 204);
    expect(&append(&house, &path, 8, &VIDEO[8..]).await, 204);
    assert_eq!(std::fs::read(house.volume.upload(id_of(&path))).unwrap(), VIDEO);
}

#[tokio::test]
async fn a_whole_upload_becomes_a_job_even_if_its_pre_was_killed_before() {
    for by_the_sender in [true, false] {
        let house = TestApp::start().await;
        let path = begin(&house).await;
        let id = id_of(&path);
        std::fs::write(house.volume.partial(id), VIDEO).unwrap();
        let lock = hold(&house, &path).await;
        house.store.record_offset(&lock, VIDEO.len() as u64, LEASE).await.unwrap();
        assert_eq!(jobs(&house).await, 0);
        if by_the_sender {
            assert_eq!(offset(&house, &path).await, VIDEO.len());
        } else {
            Sweeper::default().sweep(&house.app).await.unwrap();
        }
        house.expect_status(id, "ENQUEUE").await;
        assert_eq!(house.store.upload(id).await.unwrap().unwrap().state, UploadState::Queued);
        assert_eq!(std::fs::read(house.volume.upload(id)).unwrap(), VIDEO);
    }
}

#[tokio::test]
async fn a_chunk_counts_only_if_it_is_what_its_checksum_says() {
    let house = TestApp::start().await;
    let path = begin(&house).await;
    let send = async |body: &'static [u8], sum: &str| {
        patch(&house, &path, 0, body).header("Upload-Checksum", sum).send().await.unwrap()
    };
    let right = "sha256 Pb5Tot5DH+rqJROabqXrcFYp0/tBkYEpgEbXjVWssFU=";
    let refused = send(b"a videO", right).await;
    expect(&refused, 460);
    assert_eq!(json(refused, 460).await["error"]["code"], "checksum_mismatch");
    assert_eq!(offset(&house, &path).await, 0);
    expect(&send(b"a video", "md5 Pb5Tot5DH+rqJROabqXrcFYp0/tBkYEpgEbXjVWssFU=").await, 400);
    expect(&send(b"a video", right).await, 204);
    assert_eq!(offset(&house, &path).await, 7);
}

#[tokio::test]
async fn two_writers_do_not_mix() {
    let house = TestApp::start().await;
    let other = house.another().await;
    let path = begin(&house).await;
    let (sender, slow) = sending(&house, &path, &VIDEO[..10]).await;
    received(&house, 10).await;
    for offset in [0, 10] {
        expect(&append(&other, &path, offset, b"######").await, 423);
    }
    sender.send(&VIDEO[10..20]).await.unwrap();
    drop(sender);
    expect(&slow.await.unwrap().unwrap(), 204);
    expect(&append(&other, &path, 10, b"######").await, 409);
    expect(&append(&other, &path, 20, &VIDEO[20..]).await, 204);
    assert_eq!(std::fs::read(house.volume.upload(id_of(&path))).unwrap(), VIDEO);
}

#[tokio::test]
async fn a_silent_writer_gives_way_to_a_sender_who_is_back_over_another_connection() {
    let house = TestApp::start_with(&["--lease-seconds", "1"]).await;
    let other = house.another().await;
    let path = begin(&house).await;
    let (sender, silent) = sending(&house, &path, &VIDEO[..10]).await;
    received(&house, 10).await;
    let taken = async {
        while append(&other, &path, 10, &VIDEO[10..]).await.status() != 204 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Long before the silence alone would have ended it, and without any step of the store's clock.
    tokio::time::timeout(Duration::from_secs(50), taken).await.unwrap();
    drop(sender);
    expect(&silent.await.unwrap().unwrap(), 423);
    assert_eq!(std::fs::read(house.volume.upload(id_of(&path))).unwrap(), VIDEO);
}

#[tokio::test]
async fn of_many_who_send_the_same_bytes_at_once_one_is_heard() {
    let house = TestApp::start().await;
    let other = house.another().await;
    let path = begin(&house).await;
    let racers: FuturesUnordered<_> =
        (0..16).map(|n| append(if n % 2 == 0 { &house } else { &other }, &path, 0, VIDEO)).collect();
    let statuses: Vec<u16> = racers.map(|answer| answer.status().as_u16()).collect().await;
    assert_eq!(statuses.iter().filter(|status| **status == 204).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [204, 409, 423].contains(status)), "{statuses:?}");
    assert_eq!(std::fs::read(house.volume.upload(id_of(&path))).unwrap(), VIDEO);
    assert_eq!(jobs(&house).await, 1);
}

#[tokio::test]
async fn a_lock_whose_holder_is_gone_lapses_by_the_store_s_clock() {
    let house = TestApp::start().await;
    let path = begin(&house).await;
    let lock = hold(&house, &path).await;
    std::fs::write(house.volume.partial(id_of(&path)), &VIDEO[..3]).unwrap();
    house.store.record_offset(&lock, 3, LEASE).await.unwrap();
    expect(&append(&house, &path, 3, &VIDEO[3..]).await, 423);
    house.clock.advance(LEASE);
    expect(&append(&house, &path, 3, &VIDEO[3..]).await, 204);
    assert_eq!(jobs(&house).await, 1);
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let house = TestApp::start().await;
    let path = begin(&house).await;
    append(&house, &path, 0, &VIDEO[..10]).await;
    expect(&tus(&house, "DELETE", &path).send().await.unwrap(), 204);
    assert_eq!(std::fs::read_dir(house.volume.uploads()).unwrap().count(), 0);
    expect(&tus(&house, "HEAD", &path).send().await.unwrap(), 404);
    expect(&append(&house, &path, 10, &VIDEO[10..]).await, 404);
    expect(&tus(&house, "DELETE", &path).send().await.unwrap(), 404);

    // Even while it is being sent.
    let path = begin(&house).await;
    let (sender, slow) = sending(&house, &path, &VIDEO[..10]).await;
    received(&house, 20).await;
    expect(&tus(&house, "DELETE", &path).send().await.unwrap(), 204);
    drop(sender);
    expect(&slow.await.unwrap().unwrap(), 410);
    assert_eq!(std::fs::read_dir(house.volume.uploads()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_upload_expires_when_nothing_more_comes_and_is_swept() {
    let house = TestApp::start().await;
    let path = begin(&house).await;
    let almost = UPLOAD_KEPT - Duration::from_secs(1);
    house.clock.advance(almost);
    append(&house, &path, 0, &VIDEO[..10]).await;
    house.clock.advance(almost);
    assert_eq!(Sweeper::default().sweep(&house.app).await.unwrap(), 0);
    assert_eq!(offset(&house, &path).await, 10);
    house.clock.advance(Duration::from_secs(1));
    for method in ["HEAD", "DELETE"] {
        expect(&tus(&house, method, &path).send().await.unwrap(), 410);
    }
    expect(&append(&house, &path, 10, &VIDEO[10..]).await, 410);
    assert!(house.volume.partial(id_of(&path)).exists());
    assert_eq!(Sweeper::default().sweep(&house.app).await.unwrap(), 1);
    assert!(!house.volume.partial(id_of(&path)).exists());
    expect(&tus(&house, "HEAD", &path).send().await.unwrap(), 404);

    // One that became a job is forgotten too; the job is not.
    let path = begin(&house).await;
    append(&house, &path, 0, VIDEO).await;
    house.clock.advance(UPLOAD_KEPT);
    Sweeper::default().sweep(&house.app).await.unwrap();
    assert_eq!(house.store.upload(id_of(&path)).await.unwrap(), None);
    assert!(house.volume.upload(id_of(&path)).exists());
    house.expect_status(id_of(&path), "ENQUEUE").await;
}

#[tokio::test]
async fn the_first_bytes_may_come_with_the_beginning() {
    let house = TestApp::start().await;
    let create = |body: &'static [u8]| {
        let request = tus(&house, "POST", "/v1/uploads").header("Content-Type", BYTES);
        request.header("Upload-Length", "28").body(body)
    };
    let part = create(&VIDEO[..10]).send().await.unwrap();
    expect(&part, 201);
    assert_eq!((header(&part, "upload-offset"), header(&part, "boxreel-job")), ("10", ""));
    expect(&append(&house, header(&part, "location"), 10, &VIDEO[10..]).await, 204);
    let whole = create(VIDEO).send().await.unwrap();
    expect(&whole, 201);
    assert_eq!(header(&whole, "upload-offset"), "28");
    house.expect_status(header(&whole, "boxreel-job").parse().unwrap(), "ENQUEUE").await;
    let changed = create(VIDEO).header("Upload-Checksum", "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=");
    expect(&changed.send().await.unwrap(), 460);
    assert_eq!((jobs(&house).await, house.store.due_uploads(100).await.unwrap().len()), (2, 0));
    assert_eq!(
        std::fs::read_dir(house.volume.uploads()).unwrap().count(),
        2,
        "nothing of the refused one is left"
    );
}

#[tokio::test]
async fn methods_may_be_named_in_a_header() {
    let house = TestApp::start().await;
    let path = begin(&house).await;
    let post = |method: &str| tus(&house, "POST", &path).header("X-HTTP-Method-Override", method);
    let bytes = post("PATCH").header("Content-Type", BYTES).header("Upload-Offset", "0").body(&VIDEO[..10]);
    expect(&bytes.send().await.unwrap(), 204);
    let asked = post("HEAD").send().await.unwrap();
    expect(&asked, 200);
    assert_eq!(header(&asked, "upload-offset"), "10");
    expect(&post("DELETE").send().await.unwrap(), 204);
    expect(&post("GET").send().await.unwrap(), 405);
    expect(&tus(&house, "POST", &path).send().await.unwrap(), 405);
    assert_eq!(tus(&house, "GET", &path).send().await.unwrap().status(), 405);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_sentence() {
    let house = TestApp::start_with(&["--max-upload", "1000"]).await;
    let create = |headers: &[(&'static str, &'static str)]| {
        let request = tus(&house, "POST", "/v1/uploads");
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
    };
    let cases: &[(&[(&str, &str)], u16)] = &[
        (&[], 400),
        (&[("Upload-Length", "-1")], 400),
        (&[("Upload-Length", "0")], 400),
        (&[("Upload-Length", "99999999999999999999999")], 400),
        (&[("Upload-Length", "1001")], 413),
        (&[("Upload-Defer-Length", "1")], 400),
        (&[("Upload-Length", "5"), ("Upload-Metadata", "every MA==")], 400),
        (&[("Upload-Length", "5"), ("Upload-Metadata", "classes dW5pY29ybg==")], 400),
        (&[("Upload-Length", "5"), ("Upload-Metadata", "evry Mg==")], 400),
        (&[("Upload-Length", "5"), ("Upload-Metadata", "filename #")], 400),
        (&[("Upload-Length", "5"), ("Upload-Metadata", "callback_url aHR0cDovLzEyNy4wLjAuMS8=")], 400),
    ];
    for (headers, status) in cases {
        let answer = create(headers).send().await.unwrap();
        expect(&answer, *status);
        let message = json(answer, *status).await["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.ends_with('.'), "{headers:?}: {message}");
    }
    assert!(!house.volume.uploads().exists(), "nothing was begun");

    let path = begin(&house).await;
    let bytes = |offset: &str| tus(&house, "PATCH", &path).header("Upload-Offset", offset).body("x");
    for (request, status) in [
        (
            house
                .request("PATCH", &path)
                .header("Upload-Offset", "0")
                .header("Content-Type", BYTES)
                .body("x"),
            412,
        ),
        (house.request("HEAD", &path).header("Tus-Resumable", "0.2.2"), 412),
        (house.request("POST", "/v1/uploads").header("Upload-Length", "5"), 412),
        (bytes("0").header("Content-Type", "video/mp4"), 415),
        (bytes("0"), 415),
        (bytes("one").header("Content-Type", BYTES), 400),
        (tus(&house, "PATCH", &path).header("Content-Type", BYTES).body("x"), 400),
        (bytes("5").header("Content-Type", BYTES), 409),
        (patch(&house, &path, 0, vec![b'x'; 29]), 413),
        (patch(&house, "/v1/uploads/630dc9e9aaaaaaaaaaaaaaaa", 0, "x"), 404),
        (patch(&house, "/v1/uploads/nonsense", 0, "x"), 404),
        (tus(&house, "DELETE", "/v1/uploads/630dc9e9aaaaaaaaaaaaaaaa"), 404),
    ] {
        let answer = request.send().await.unwrap();
        expect(&answer, status);
        assert_eq!(header(&answer, "tus-version"), if status == 412 { "1.0.0" } else { "" });
    }
    // More than was said, without a word of how much.
    let (sender, long) = sending(&house, &path, &VIDEO[..20]).await;
    sender.send(VIDEO).await.unwrap();
    drop(sender);
    expect(&long.await.unwrap().unwrap(), 413);
    assert_eq!(offset(&house, &path).await, 20);
    assert_eq!(jobs(&house).await, 0);
}

#[tokio::test]
async fn without_a_model_room_or_a_place_the_sender_is_asked_to_wait() {
    let house = TestApp::start_bare(&[]).await;
    let create = |house: &TestApp| tus(house, "POST", "/v1/uploads").header("Upload-Length", "28").send();
    let refused = create(&house).await.unwrap();
    expect(&refused, 503);
    assert!(refused.headers().contains_key("retry-after"));

    let house = TestApp::start_with(&["--disk-reserve", "1000000GB"]).await;
    expect(&create(&house).await.unwrap(), 507);
    let other = house.another().await;
    let path = begin(&other).await;
    expect(&append(&house, &path, 0, VIDEO).await, 507);
    assert_eq!(offset(&house, &path).await, 0);
    expect(&append(&other, &path, 0, VIDEO).await, 204);

    let house = TestApp::start_with(&["--max-uploads", "1"]).await;
    let (first, second) = (begin(&house).await, begin(&house).await);
    let (sender, slow) = sending(&house, &first, VIDEO).await;
    received(&house, VIDEO.len()).await;
    let busy = append(&house, &second, 0, VIDEO).await;
    expect(&busy, 503);
    assert!(busy.headers().contains_key("retry-after"));
    drop(sender);
    expect(&slow.await.unwrap().unwrap(), 204);
    expect(&append(&house, &second, 0, VIDEO).await, 204);
}

#[tokio::test]
async fn a_pre_that_stops_keeps_what_has_come() {
    let house = TestApp::start().await;
    let other = house.another().await;
    let path = begin(&house).await;
    let (sender, slow) = sending(&house, &path, &VIDEO[..10]).await;
    received(&house, 10).await;
    house.app.service.stop.cancel();
    // It waits a moment for whoever still sends.
    drop(sender);
    let answer = slow.await.unwrap().unwrap();
    expect(&answer, 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(offset(&other, &path).await, 10);
    expect(&append(&other, &path, 10, &VIDEO[10..]).await, 204);
}

#[tokio::test]
async fn the_door_is_that_of_the_other_uploads() {
    let house = TestApp::start_with(&["--api-token", "us3r"]).await;
    let create = || tus(&house, "POST", "/v1/uploads").header("Upload-Length", "28");
    expect(&create().send().await.unwrap(), 401);
    expect(&create().bearer_auth("wrong").send().await.unwrap(), 401);
    let begun = create().bearer_auth("us3r").send().await.unwrap();
    expect(&begun, 201);
    let path = header(&begun, "location");
    expect(&tus(&house, "HEAD", path).send().await.unwrap(), 401);
    expect(&append(&house, path, 0, VIDEO).await, 401);
    expect(&tus(&house, "DELETE", path).send().await.unwrap(), 401);
    expect(&house.request("OPTIONS", "/v1/uploads").send().await.unwrap(), 401);
    assert_eq!(patch(&house, path, 0, VIDEO).bearer_auth("us3r").send().await.unwrap().status(), 204);

    // No page of a stranger may use a browser for it, where there is no token either.
    let house = TestApp::start().await;
    let path = begin(&house).await;
    for (method, path) in [("POST", "/v1/uploads"), ("PATCH", &*path), ("DELETE", &*path)] {
        let foreign = tus(&house, method, path).header("Origin", "https://evil.example");
        assert_eq!(foreign.send().await.unwrap().status(), 403, "{method}");
    }
}

#[tokio::test]
async fn the_model_is_the_one_of_the_end() {
    let house = TestApp::start().await;
    let path = begin(&house).await;
    let mut offer = house.store.offer().await.unwrap().unwrap();
    offer.key.digest = "retrained".to_owned();
    house.clock.advance(Duration::from_secs(1));
    let mut worker = house.store.workers(LEASE).await.unwrap().remove(0).worker;
    worker.offer = Some(offer);
    house.store.announce(&worker).await.unwrap();
    append(&house, &path, 0, VIDEO).await;
    let job = house.store.job(id_of(&path)).await.unwrap().unwrap();
    assert_eq!(job.settings.model.digest, "retrained");
}

/// A door to `house` whose connections are killed, once, when `allowed` bytes have gone in.
async fn fragile_door(house: &TestApp, allowed: usize) -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let target = house.base.strip_prefix("http://").unwrap().to_owned();
    let left = Arc::new(AtomicUsize::new(allowed));
    let door = tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(&target).await.unwrap();
            let left = left.clone();
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let mut buffer = vec![0; 64 << 10];
                let passing = async {
                    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                        let before = left.load(Ordering::SeqCst);
                        left.store(before.checked_sub(read).unwrap_or(usize::MAX), Ordering::SeqCst);
                        if read > before || to_server.write_all(&buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = passing => {}
                    _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                }
            });
        }
    });
    (address, AbortOnDropHandle::new(door))
}

/// With tus-js-client, which others wrote; `scripts/fetch_tus_client.sh` fetches it where npm is.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_others_goes_on_after_its_connection_was_killed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let client = root.join(".tools/tus-client/node_modules/tus-js-client");
    if !client.is_dir() {
        eprintln!("skipped: there is no tus-js-client; scripts/fetch_tus_client.sh fetches it where npm is");
        return;
    }
    let house = TestApp::start().await;
    let film: Vec<u8> = (0..8_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = house.volume.root().join("film");
    std::fs::write(&file, &film).unwrap();
    let (door, _open) = fragile_door(&house, 5 << 20).await;
    let output = Command::new("node")
        .arg(root.join("scripts/tus_client/upload.mjs"))
        .args([&client, Path::new(&format!("{door}/v1/uploads")), &file])
        .output()
        .await
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    let resumed = told.lines().filter_map(|line| line.strip_prefix("PATCH ")?.parse::<usize>().ok()).max();
    assert!(resumed.is_some_and(|offset| offset > 0 && offset < 5 << 20), "it went on where it was: {told}");
    let job = told.lines().last().unwrap().strip_prefix("204 ").unwrap().parse().unwrap();
    assert_eq!(house.store.job(job).await.unwrap().unwrap().filename, "Räder.mp4");
    assert!(std::fs::read(house.volume.upload(job)).unwrap() == film, "the bytes are those of the file");
    assert_eq!(jobs(&house).await, 1);
}
