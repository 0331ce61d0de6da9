//! The pages as a browser without JavaScript meets them.

use common::job::JobId;
use common::segment::Stage;
use common::store::Setback;
use reqwest::redirect::Policy;
use reqwest::{Client, Response};

use crate::house::TestApp;

const FORM: &str = "multipart/form-data; boundary=XX";
const FIELDS: &str = "application/x-www-form-urlencoded";

fn form(name: &str, content: &str, keep: bool) -> String {
    let field = |name: &str, value: &str| {
        format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let file = format!("name=\"file\"; filename=\"{name}\"\r\nContent-Type: video/mp4");
    let keep = if keep { field("keep_frames", "true") } else { String::new() };
    format!(
        "--XX\r\nContent-Disposition: form-data; {file}\r\n\r\n{content}\r\n{}{keep}--XX--\r\n",
        field("keep_frames", "false")
    )
}

/// A browser that shows where it is sent instead of going there.
fn browser() -> Client {
    Client::builder().redirect(Policy::none()).build().unwrap()
}

async fn page(answer: Response, status: u16) -> String {
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let found = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    assert_eq!(found, status, "{text}");
    assert!(!text.contains("<script>") && !text.contains(" style=") && !text.contains(" onclick="), "{text}");
    text
}

fn holds(page: &str, texts: &[&str]) {
    for text in texts {
        assert!(page.contains(text), "{text} is missing in {page}");
    }
}

#[tokio::test]
async fn an_upload_by_the_form_is_answered_as_the_original_did_and_appears_among_the_results() {
    let house = TestApp::start().await;
    let start = browser().get(format!("{}/", house.base)).send().await.unwrap();
    assert_eq!((start.status().as_u16(), &start.headers()["location"]), (303, &"/upload".parse().unwrap()));
    let upload = page(house.get("/upload").await, 200).await;
    holds(&upload, &["action=\"/fileUpload\"", "href=\"/result\">see result", "keep frames"]);
    holds(&page(house.get("/result").await, 200).await, &["Nothing here yet"]);

    let mut ids = Vec::new();
    for (name, keep) in [("video_3.mp4", true), ("bikes.mp4", false)] {
        let body = form(name, "a video", keep);
        let sent = house.request("POST", "/fileUpload").header("Content-Type", FORM).body(body).send();
        let text = page(sent.await.unwrap(), 200).await;
        let id = text.split("your id is : <code>").nth(1).unwrap()[..24].parse::<JobId>().unwrap();
        holds(&text, &[name, "href=\"/upload\">return", "href=\"/result\">result"]);
        assert_eq!(house.store.job(id).await.unwrap().unwrap().settings.keep_frames, keep);
        ids.push(id);
        if ids.len() == 1 {
            house.finish(1).await;
        }
    }
    let text = page(house.get("/result").await, 200).await;
    holds(
        &text,
        &[
            "back to home",
            "refresh",
            &format!("your id is : <code>{}</code>", ids[0]),
            "your filename is : <span class=\"name\">video_3.mp4</span>",
            "process start time : <span class=\"number\">2023-11-14 22:13:20.000000</span>",
            "preprocessing start time : ",
            "preprocessing end time : ",
            "inferencing start time : ",
            "inferencing end time : ",
            "postprocessing start time : <span class=\"number\">WAITING..</span>",
            "postprocessing end time : ",
            "total duration time : <span class=\"number\">0:00:00.000000</span>",
            &format!("href=\"/v1/jobs/{0}/video.avi\" download=\"target_{0}.avi\">video_3.avi</a>", ids[0]),
            "POSTPROCESSING_COMPLETE",
            "ENQUEUE",
        ],
    );
    let avi = house.get(&format!("/v1/jobs/{}/video.avi", ids[0])).await;
    let name = avi.headers()["content-disposition"].to_str().unwrap().to_owned();
    assert!(name.starts_with(&format!("attachment; filename=\"target_{}.avi\"", ids[0])), "{name}");
    assert!(!page(house.get("/result?status=complete").await, 200).await.contains("bikes.mp4"));
    holds(&page(house.get("/result?status=failed").await, 200).await, &["No request is in this group"]);
    holds(&page(house.get("/result?status=nonsense").await, 400).await, &["no such group"]);
}

#[tokio::test]
async fn a_form_may_be_as_large_as_a_video_at_every_door() {
    let house = TestApp::start().await;
    for path in ["/fileUpload", "/v1/jobs"] {
        let body = form("film.mp4", &"v".repeat(3 << 20), true);
        let sent = house.request("POST", path).header("Content-Type", FORM).body(body).send().await.unwrap();
        assert!(sent.status().is_success(), "{path}: {}", sent.text().await.unwrap());
    }
}

#[tokio::test]
async fn a_result_is_shown_stopped_begun_again_and_deleted() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let path = format!("/result/{id}");
    house.index(2).await;
    house.work(Stage::Decode).await;
    let text = page(house.get(&path).await, 200).await;
    holds(
        &text,
        &["frames 0 to 1: is read", "frames 2 to 3: waits to be read", "cancel", "<h2 id=\"times-title\">"],
    );
    assert!(!text.contains("<video"), "{text}");

    let client = browser();
    let post = async |path: &str| {
        let request = client.post(format!("{}{path}", house.base)).header("Content-Type", FIELDS);
        request.body("").send().await.unwrap()
    };
    let stopped = post(&format!("{path}/cancel")).await;
    assert_eq!(
        (stopped.status().as_u16(), stopped.headers()["location"].to_str().unwrap()),
        (303, path.as_str())
    );
    house.expect_status(id, "CANCELLED").await;
    holds(&page(house.get(&path).await, 200).await, &["retry", "CANCELLED"]);
    assert_eq!(post(&format!("{path}/retry")).await.status(), 303);
    holds(&page(post(&format!("{path}/retry")).await, 409).await, &["can be retried"]);

    let claimed = house.claim(Stage::Decode).await;
    let message = "The video <b>breaks off</b>.".to_owned();
    house.store.set_back(claimed.lease, Setback::Fail { message }).await.unwrap();
    house.settle(id).await;
    let text = page(house.get(&path).await, 200).await;
    holds(&text, &["FRAME_CONVERT_ERROR", "retry"]);
    assert!(text.contains("breaks off") && !text.contains("<b>breaks"), "{text}");

    let text = page(house.get(&format!("/resdelete/{id}")).await, 200).await;
    holds(&text, &["bikes.mp4", "delete</button>"]);
    let gone = post(&format!("/resdelete/{id}")).await;
    assert_eq!((gone.status().as_u16(), gone.headers()["location"].to_str().unwrap()), (303, "/result"));
    holds(&page(house.get(&path).await, 404).await, &["Not found"]);
    holds(&page(house.get("/result/nonsense").await, 404).await, &["Not found"]);
}

#[tokio::test]
async fn a_finished_result_has_its_player_its_counts_and_its_downloads() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    house.finish(1).await;
    let text = page(house.get(&format!("/result/{id}")).await, 200).await;
    let link = |what: &str| format!("href=\"/v1/jobs/{id}/{what}\"");
    let links =
        ["video.mp4", "video.avi", "detections.json", "detections.csv", "txts.zip", "frames.zip", "source"];
    holds(&text, &links.map(link).iter().map(String::as_str).collect::<Vec<_>>());
    let video = format!("src=\"/v1/jobs/{id}/video.mp4\"");
    let counted = "<th scope=\"row\">car</th><td class=\"number\">2</td>";
    holds(&text, &[&video, counted, "Preprocessing", "details.js"]);
}

#[tokio::test]
async fn a_hostile_name_stays_text() {
    let house = TestApp::start().await;
    let name = "%3Cimg%20src=x%20onerror=alert(1)%3E%22'%26.mp4";
    let id = house.upload(name).await;
    for path in ["/result".to_owned(), format!("/result/{id}"), format!("/resdelete/{id}")] {
        let text = page(house.get(&path).await, 200).await;
        assert!(!text.contains("<img src=x") && !text.contains("\"'&.mp4"), "{text}");
        assert!(text.contains("img src=x onerror=alert(1)"), "{text}");
    }
}

#[tokio::test]
async fn results_are_paged_from_the_newest() {
    let house = TestApp::start().await;
    for n in 0..23 {
        house.upload(&format!("clip_{n}_.mp4")).await;
        house.clock.advance(std::time::Duration::from_secs(1));
    }
    let first = page(house.get("/result").await, 200).await;
    assert!(first.contains("clip_22_") && !first.contains("clip_2_."), "{first}");
    assert!(first.find("clip_22_") < first.find("clip_21_"));
    let older = first.split("href=\"/result?before=").nth(1).unwrap();
    let second = page(house.get(&format!("/result?before={}", &older[..24])).await, 200).await;
    assert!(
        second.contains("clip_2_.") && second.contains("clip_0_") && !second.contains("clip_3_."),
        "{second}"
    );
    assert!(second.contains(">newest</a>") && !second.contains(">older</a>"), "{second}");
    assert_eq!(house.get("/result?before=../x").await.status(), 400);
}

#[tokio::test]
async fn the_token_opens_a_session_that_holds_at_every_pre_and_only_for_our_own_pages() {
    let house = TestApp::start_with(&["--api-token", "open sesame"]).await;
    let client = browser();
    let to = |path: &str| format!("{}{path}", house.base);
    let turned = client.get(to("/result?status=failed")).send().await.unwrap();
    assert_eq!(turned.headers()["location"], "/login?next=/result%3Fstatus%3Dfailed");
    holds(
        &page(client.get(to("/login?next=/result")).send().await.unwrap(), 200).await,
        &["value=\"/result\""],
    );
    let sign_in = async |token: &str, next: &str| {
        let request = client.post(to("/login")).header("Content-Type", FIELDS);
        request.body(format!("token={token}&next={next}")).send().await.unwrap()
    };
    let wrong = sign_in("open+barley", "/result").await;
    assert!(!wrong.headers().contains_key("set-cookie"));
    holds(&page(wrong, 403).await, &["not the token"]);
    assert_eq!(sign_in("open+sesame", "https://evil.example/").await.headers()["location"], "/upload");
    let right = sign_in("open+sesame", "/result").await;
    assert_eq!(right.headers()["location"], "/result");
    let cookie = right.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.ends_with("HttpOnly; SameSite=Strict") && !cookie.contains("sesame"), "{cookie}");
    let session = cookie.split(';').next().unwrap().to_owned();

    let get = async |path: &str| client.get(to(path)).header("Cookie", &session).send().await.unwrap();
    let text = page(get("/upload").await, 200).await;
    let token = text.split("name=\"form_token\" value=\"").nth(1).unwrap()[..64].to_owned();
    assert_eq!(get("/v1/jobs").await.status(), 200);
    assert_eq!(client.get(to("/v1/jobs")).send().await.unwrap().status(), 401);
    let (rest, last) = session.split_at(session.len() - 1);
    let forged = format!("{rest}{}", if last == "0" { "1" } else { "0" });
    assert_eq!(client.get(to("/v1/jobs")).header("Cookie", forged).send().await.unwrap().status(), 401);

    // Uploads: with our form's token, from our page.
    let origin = house.base.clone();
    let send = async |path: &str, origin: Option<&str>, kind: &str, body: String| {
        let mut request = client.post(to(path)).header("Cookie", &session).header("Content-Type", kind);
        if let Some(origin) = origin {
            request = request.header("Origin", origin);
        }
        request.body(body).send().await.unwrap()
    };
    let path = format!("/fileUpload?form_token={token}");
    let video = || form("a.mp4", "a video", true);
    assert_eq!(send(&path, Some(&origin), FORM, video()).await.status(), 200);
    assert_eq!(send("/fileUpload", Some(&origin), FORM, video()).await.status(), 403);
    assert_eq!(send(&path, Some("https://evil.example"), FORM, video()).await.status(), 403);
    assert_eq!(send("/v1/jobs", Some(&origin), "video/mp4", "b".to_owned()).await.status(), 202);
    for foreign in [Some("https://evil.example"), Some("null")] {
        assert_eq!(send("/v1/jobs", foreign, "video/mp4", "b".to_owned()).await.status(), 403);
    }
    assert_eq!(
        send("/v1/jobs", None, "video/mp4", "b".to_owned()).await.status(),
        401,
        "a cookie alone writes nothing"
    );
    assert_eq!(house.store.jobs(None, 10, &[]).await.unwrap().len(), 2);
    let id = house.store.jobs(None, 1, &[]).await.unwrap()[0].id;
    let delete = format!("/resdelete/{id}");
    assert_eq!(send(&delete, Some(&origin), FIELDS, String::new()).await.status(), 403);
    assert_eq!(send(&delete, Some(&origin), FIELDS, format!("form_token={token}")).await.status(), 303);
    let out = send("/logout", Some(&origin), FIELDS, format!("form_token={token}")).await;
    assert!(out.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));

    // It ends by the database's clock.
    house.clock.advance(std::time::Duration::from_secs(31 * 24 * 3600));
    assert_eq!(get("/v1/jobs").await.status(), 401);
}

#[tokio::test]
async fn without_a_token_pages_of_others_can_do_nothing_either() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let cancel = |name: &'static str, value: &'static str| {
        house.request("POST", &format!("/v1/jobs/{id}/cancel")).header(name, value).send()
    };
    assert_eq!(cancel("Origin", "https://evil.example").await.unwrap().status(), 403);
    assert_eq!(cancel("Sec-Fetch-Site", "cross-site").await.unwrap().status(), 403);
    house.expect_status(id, "ENQUEUE").await;
    assert_eq!(cancel("Sec-Fetch-Site", "same-origin").await.unwrap().status(), 200);
}

#[tokio::test]
async fn style_and_modules_are_kept_for_good_under_an_address_of_their_content() {
    let house = TestApp::start().await;
    let text = page(house.get("/upload").await, 200).await;
    let base = text.split("href=\"/assets/").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let mut weight = text.len();
    for name in [
        "style.css",
        "icon.svg",
        "live.js",
        "tus.js",
        "upload.js",
        "result.js",
        "details.js",
        "player.js",
        "workers.js",
    ] {
        let answer = house.get(&format!("/assets/{base}/{name}")).await;
        assert_eq!(answer.status(), 200, "{name}");
        assert!(answer.headers()["cache-control"].to_str().unwrap().contains("immutable"));
        weight += answer.text().await.unwrap().len();
    }
    assert!(weight < 150_000, "{weight} bytes");
    let old = house.get("/assets/0123/style.css").await;
    assert_eq!((old.status().as_u16(), &old.headers()["cache-control"]), (200, &"no-store".parse().unwrap()));
    assert_eq!(house.get(&format!("/assets/{base}/../../etc/passwd")).await.status(), 404);
}

#[tokio::test]
async fn text_travels_compressed_and_nothing_else_does() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let get = async |path: &str| {
        let answer =
            house.request("GET", path).header("Accept-Encoding", "gzip, deflate").send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        let how = answer.headers().get("content-encoding").map(|how| how.to_str().unwrap().to_owned());
        (how, answer)
    };
    let gzip = Some("gzip".to_owned());
    // Events are there at once, not when enough have come together.
    let (how, mut events) = get(&format!("/v1/jobs/{id}/events")).await;
    assert_eq!(how, None);
    assert!(events.chunk().await.unwrap().is_some());
    drop(events);
    house.finish(1).await;
    let (how, page) = get("/result").await;
    assert_eq!((how, &page.headers()["vary"]), (gzip.clone(), &"accept-encoding".parse().unwrap()));
    assert_eq!(page.bytes().await.unwrap()[..2], [0x1f, 0x8b]);
    assert_eq!(get("/openapi.json").await.0, gzip);
    for what in ["video.mp4", "video.avi", "source", "txts.zip"] {
        assert_eq!(get(&format!("/v1/jobs/{id}/{what}")).await.0, None, "{what}");
    }
    // Who cannot read it gets it plain.
    assert!(house.get("/result").await.text().await.unwrap().contains("bikes.mp4"));
}
