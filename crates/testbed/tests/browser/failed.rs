//! What is no video, under a name that would be code.

use crate::browser::Browser;
use testbed::House;

const NAME: &str = "<img src=x onerror=\"document.title='taken over'\">'&.mp4";

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_says_why_and_is_tried_again() {
    let house = House::start();
    let file = house.folder().join(NAME);
    std::fs::write(&file, "This is no video.").unwrap();
    let browser = Browser::open(&house.url).await;
    browser.goto("/upload").await;
    browser.choose(&file).await;
    browser.press("upload").await;
    browser.until_said("your id is").await;
    unharmed(&browser).await;
    browser.follow("watch it work").await;
    browser.until_said("ENQUEUE_ERROR").await;
    browser.until("return document.querySelector('[role=alert]')?.textContent.trim().length > 20").await;
    browser.check("failed").await;
    unharmed(&browser).await;

    // A retry is a new run, which fails as the first did.
    let id = browser.path().await.rsplit('/').next().unwrap().to_owned();
    browser.press("retry").await;
    browser
        .until(&format!(
            "return fetch('/v1/jobs/{id}').then((answer) => answer.json()).then((job) => job.run === 1 && job.is_final)"
        ))
        .await;
    browser.until_said("ENQUEUE_ERROR").await;

    browser.goto("/result").await;
    browser.until_said("ENQUEUE_ERROR").await;
    browser.check("list-failed").await;
    unharmed(&browser).await;
    browser.goto(&format!("/resdelete/{id}")).await;
    unharmed(&browser).await;

    // The form without its script: the page that answers it.
    browser.goto("/upload").await;
    browser.choose(&file).await;
    browser.ask("document.querySelector('form[action^=\"/fileUpload\"]').submit()").await;
    browser.until("return document.querySelector('h1').textContent === 'Uploaded'").await;
    browser.check("resorback").await;
    unharmed(&browser).await;
    browser.close().await;
}

/// The name is there to be read, and nothing else came of it.
async fn unharmed(browser: &Browser) {
    browser.until_said("<img src=x onerror=").await;
    assert_eq!(
        browser.ask("return document.querySelector('img[src=x], [onerror]')").await,
        serde_json::Value::Null
    );
    assert_ne!(browser.ask("return document.title").await, "taken over");
}
