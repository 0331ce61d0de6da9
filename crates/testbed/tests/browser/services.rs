//! The pages in front of three services: a session, and a job whose progress the test holds in its hand.

use serde_json::json;
use testbed::Mongod;
use testbed::cluster::{API_TOKEN, Cluster, Plan};

use crate::browser::Browser;
use crate::clip::clip;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_watched_cancelled_begun_again_and_ends() {
    let mongod = Mongod::shared();
    let cluster = Cluster::start(&mongod.uri(), &mongod.fresh_database(), &Plan::default()).await;
    let file = clip(cluster.folder(), "clip.mp4", 140);
    let site = cluster.of("pre").next().unwrap().url();
    let infer = cluster.of("infer").next().unwrap();
    let browser = Browser::open(&site).await;

    browser.goto("/upload").await;
    browser.until_said("Sign in").await;
    browser.check("login").await;
    browser.find("#token").await.send_keys("a guess").await.unwrap();
    browser.press("sign in").await;
    browser.until_said("That is not the token").await;
    browser.check("login-wrong").await;
    browser.console(Some("403")).await;
    browser.find("#token").await.send_keys(API_TOKEN).await.unwrap();
    browser.press("sign in").await;
    browser.until_said("Upload a video").await;
    assert_eq!(browser.cookie("boxreel_session").await, json!([true, "Strict", false]));

    // Nobody detects: it is read, and goes no further.
    infer.pause();
    browser.choose(&file).await;
    browser.press("upload").await;
    browser.follow("watch it work").await;
    let percent = "return Number(document.querySelector('progress[aria-label=Progress]')?.value)";
    browser.until("return document.querySelector('progress[aria-label=Reading]')?.value === 100").await;
    browser.until_said("PREPROCESSING").await;
    let halted = browser.ask(percent).await.as_f64().unwrap();
    assert!(halted > 0.0 && halted < 100.0, "{halted} %");
    browser.check("working").await;
    browser.press("cancel").await;
    browser.until_said("CANCELLED").await;
    browser.check("cancelled").await;

    // Again, to the end; what the bar shows on the way is noted in the page, which is not loaded anew before.
    browser.press("retry").await;
    browser.until("return document.querySelector('progress[aria-label=Progress]') !== null").await;
    browser
        .ask(
            "new MutationObserver(() => {
               const value = document.querySelector('progress[aria-label=Progress]')?.value;
               const seen = JSON.parse(sessionStorage.getItem('seen') ?? '[]');
               if (value !== undefined && seen.at(-1) !== value) sessionStorage.setItem('seen', JSON.stringify([...seen, value]));
             }).observe(document.getElementById('live'), { subtree: true, childList: true, attributes: true });",
        )
        .await;
    infer.go_on();
    browser.until_said("POSTPROCESSING_COMPLETE").await;
    let seen = browser.ask("return JSON.parse(sessionStorage.getItem('seen'))").await;
    let values: Vec<f64> = seen.as_array().unwrap().iter().filter_map(serde_json::Value::as_f64).collect();
    assert!(values.last().is_some_and(|last| *last > halted), "from {halted} %: {values:?}");
    assert!(values.is_sorted(), "{values:?}");
    browser.until("return document.getElementById('video')?.readyState >= 1").await;

    browser.press("sign out").await;
    browser.until_said("Sign in").await;
    let status = browser.ask("return fetch('/v1/jobs').then((answer) => answer.status)").await;
    assert_eq!(status, json!(401));
    browser.console(Some("401")).await;
    browser.close().await;
}
