//! A video comes in.

use common::job::Status;
use serde_json::Value;

use crate::house::{TestApp, id_of, json};

const FORM: &str = "multipart/form-data; boundary=XX";

/// A form of these fields; a name with a file's name after a slash is a file.
fn form(fields: &[(&str, &str)]) -> String {
    let mut body = String::new();
    for (name, value) in fields {
        let name = match name.split_once('/') {
            Some((name, file)) => format!("name=\"{name}\"; filename=\"{file}\""),
            None => format!("name=\"{name}\""),
        };
        body.push_str(&format!("--XX\r\nContent-Disposition: form-data; {name}\r\n\r\n{value}\r\n"));
    }
    body + "--XX--\r\n"
}

fn leftovers(house: &TestApp) -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(house.volume.uploads()) else { return vec![] };
    folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_form_becomes_a_job() {
    let house = TestApp::start().await;
    let body = form(&[
        ("conf", "0.5"),
        ("file/../../Fahrräder.mp4", "a video of bikes"),
        ("keep_frames", "false"),
        ("classes", "car"),
        ("classes", "0"),
        ("every", "2"),
        ("callback_url", "https://example.org/done"),
    ]);
    let answer =
        house.request("POST", "/v1/jobs").header("Content-Type", FORM).body(body).send().await.unwrap();
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let job = json(answer, 202).await;
    let id = id_of(&job);
    assert_eq!(location, format!("/v1/jobs/{id}"));
    assert_eq!((&job["filename"], &job["status"]), (&Value::from("Fahrräder.mp4"), &Value::from("ENQUEUE")));
    assert_eq!(job["options"]["classes"], serde_json::json!(["person", "car"]));
    let stored = house.store.job(id).await.unwrap().unwrap();
    assert_eq!(stored.settings.classes, [0, 2]);
    assert!(!stored.settings.keep_frames && stored.settings.every == 2 && stored.settings.conf == 0.5);
    assert_eq!(stored.callback.unwrap().url, "https://example.org/done");
    assert_eq!(std::fs::read(house.volume.upload(id)).unwrap(), b"a video of bikes");
    assert_eq!(stored.source.path, house.volume.upload(id));
    assert_eq!(stored.source.size, 16);
    assert!(house.volume.job(id).subfolder("pack").is_dir());
    assert_eq!(leftovers(&house), [id.to_string()]);
}

#[tokio::test]
async fn the_body_itself_becomes_a_job() {
    let house = TestApp::start().await;
    let answer = house
        .request("POST", "/v1/jobs?every=3&classes=person,bicycle")
        .header("Content-Type", "video/mp4")
        .header("Content-Disposition", "attachment; filename*=UTF-8''R%C3%A4der.mp4")
        .body("bikes")
        .send();
    let job = json(answer.await.unwrap(), 202).await;
    assert_eq!((&job["filename"], &job["options"]["every"]), (&Value::from("Räder.mp4"), &Value::from(3)));
    assert_eq!(job["options"]["keep_frames"], true);
    let source = house.get(&format!("/v1/jobs/{}/source", id_of(&job))).await;
    assert!(source.headers()["content-disposition"].to_str().unwrap().ends_with("UTF-8''R%C3%A4der.mp4"));
    assert_eq!(source.headers()["content-type"], "application/octet-stream");
    assert_eq!(source.bytes().await.unwrap(), "bikes");
}

#[tokio::test]
async fn what_is_no_upload_is_refused_with_a_sentence_and_leaves_nothing() {
    let house = TestApp::start_with(&["--max-upload", "100"]).await;
    let long = "x".repeat(101);
    let cases: &[(&str, &str, String, u16)] = &[
        ("", "application/json", "{}".to_owned(), 415),
        ("", "text/html", "<p>".to_owned(), 415),
        ("", "video/mp4", String::new(), 400),
        ("", "video/mp4", long.clone(), 413),
        ("", FORM, form(&[("file/a.mp4", &long)]), 413),
        ("", FORM, form(&[("conf", "0.5")]), 400),
        ("", FORM, form(&[("file/a.mp4", "")]), 400),
        ("", FORM, form(&[("file/a.mp4", "a"), ("file/b.mp4", "b")]), 400),
        ("", FORM, form(&[("file/a.mp4", "a"), ("conf", "2")]), 400),
        ("", FORM, form(&[("file/a.mp4", "a"), ("colour", "red")]), 400),
        ("", FORM, form(&[("file/a.mp4", "a"), ("classes", "unicorn")]), 400),
        (
            "",
            FORM,
            "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nab".to_owned(),
            400,
        ),
        ("", "multipart/form-data", "x".to_owned(), 400),
        ("?every=0", "video/mp4", "x".to_owned(), 400),
        ("?classes=9", "video/mp4", "x".to_owned(), 400),
        ("?callback_url=file:///etc/passwd", "video/mp4", "x".to_owned(), 400),
        ("?colour=red", "video/mp4", "x".to_owned(), 400),
    ];
    for (query, kind, body, status) in cases {
        let request = house.request("POST", &format!("/v1/jobs{query}")).header("Content-Type", *kind);
        let answer = json(request.body(body.clone()).send().await.unwrap(), *status).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.ends_with('.') && !message.contains("volume/"), "{query} {kind}: {message}");
    }
    assert!(house.store.jobs(None, 10, &[]).await.unwrap().is_empty());
    assert!(leftovers(&house).is_empty(), "{:?}", leftovers(&house));
    let fits = house.request("POST", "/v1/jobs").body("x".repeat(100)).send().await.unwrap();
    assert_eq!(fits.status(), 202);
}

#[tokio::test]
async fn a_key_leads_to_one_job_however_often_it_is_sent() {
    let house = TestApp::start().await;
    let other = house.another().await;
    let send = |house: &TestApp, key: &str| {
        let request = house.request("POST", "/v1/jobs").header("Idempotency-Key", key).body("a video");
        async move { request.send().await.unwrap() }
    };
    let answers = futures_util::future::join_all(
        (0..8).map(|n| send(if n % 2 == 0 { &house } else { &other }, "once")),
    );
    let mut ids = Vec::new();
    for answer in answers.await {
        ids.push(id_of(&json(answer, 202).await));
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let again = send(&other, "once").await;
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    assert_eq!(id_of(&json(again, 202).await), ids[0]);
    assert_ne!(id_of(&json(send(&house, "twice").await, 202).await), ids[0]);
    assert_eq!(house.store.jobs(None, 100, &[]).await.unwrap().len(), 2);

    // The first one came to nothing: a process was killed after the key was tied.
    let broken =
        house.request("POST", "/v1/jobs").header("Idempotency-Key", "third").body("").send().await.unwrap();
    assert_eq!(broken.status(), 400);
    let job = json(send(&house, "third").await, 202).await;
    assert_eq!(job["status"], Status::Enqueue.as_str());
    house.request("DELETE", &format!("/v1/jobs/{}", id_of(&job))).send().await.unwrap();
    assert_eq!(send(&house, "third").await.status(), 409);
    assert_eq!(send(&house, "").await.status(), 400);
}

#[tokio::test]
async fn without_a_model_room_or_a_place_the_sender_is_asked_to_wait() {
    let house = TestApp::start_bare(&[]).await;
    let answer = house.request("POST", "/v1/jobs").body("a video").send().await.unwrap();
    assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(json(answer, 503).await["error"]["code"], "unavailable");

    let house = TestApp::start_with(&["--disk-reserve", "1000000GB"]).await;
    let answer = house.request("POST", "/v1/jobs").body("a video").send().await.unwrap();
    assert_eq!(json(answer, 507).await["error"]["code"], "insufficient_storage");

    let house = TestApp::start_with(&["--max-uploads", "1"]).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<&'static str, std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(futures_util::stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    }));
    let slow = tokio::spawn(house.request("POST", "/v1/jobs").body(body).send());
    sender.send(Ok("half of ")).await.unwrap();
    // The first one has its place once its bytes are counted.
    while !house.get("/metrics").await.text().await.unwrap().contains("boxreel_upload_received_bytes_total 8")
    {
        tokio::task::yield_now().await;
    }
    let answer = house.request("POST", "/v1/jobs").body("a video").send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    sender.send(Ok("a video")).await.unwrap();
    drop(sender);
    let job = json(slow.await.unwrap().unwrap(), 202).await;
    assert_eq!(job["size"], 15);
}
