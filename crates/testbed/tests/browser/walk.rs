//! From choosing a video to deleting its result.

use fantoccini::key::Key;
use serde_json::Value;

use crate::browser::Browser;
use crate::clip::clip;
use testbed::House;

/// What is painted on the canvas over the video: how many pixels, and a digest of them.
const PAINTED: &str = "
    const { width, height } = boxes;
    if (!width || !height) return null;
    const copy = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
    copy.drawImage(boxes, 0, 0);
    const pixels = copy.getImageData(0, 0, width, height).data;
    let [count, digest] = [0, 0];
    for (let at = 0; at < pixels.length; at += 4) {
      if (pixels[at + 3]) count += 1;
      digest = (Math.imul(digest, 31) + pixels[at] + 3 * pixels[at + 1] + 7 * pixels[at + 2] + pixels[at + 3]) | 0;
    }
    return count ? [count, digest] : null;";

/// Waits until the canvas differs from what it was; how many pixels are painted then.
async fn repainted(browser: &Browser, before: &mut Value) -> u64 {
    let script = format!(
        "const now = (() => {{ {PAINTED} }})(); return now && JSON.stringify(now) !== '{before}' ? now : null;"
    );
    *before = browser.until(&script).await;
    before[0].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_video_is_uploaded_watched_explored_and_deleted() {
    let house = House::start();
    let file = clip(house.folder(), "kites.mp4", 70);
    let browser = Browser::open(&house.url).await;

    browser.goto("/result").await;
    browser.until_said("Nothing here yet").await;
    browser.check("empty").await;
    browser.goto("/").await;
    assert_eq!(browser.path().await, "/upload");
    browser.check("upload").await;
    browser.choose(&file).await;
    browser.press("upload").await;
    browser.until_said("your id is").await;
    browser.check("uploaded").await;
    browser.follow("watch it work").await;

    // The page becomes the result by itself.
    browser.until("return document.getElementById('video')?.readyState >= 1").await;
    browser.until_said("POSTPROCESSING_COMPLETE").await;
    let details = browser.path().await;
    browser.until("return document.querySelectorAll('#chips button').length > 0").await;
    browser.check("details").await;

    // The boxed video plays.
    assert!(browser.ask("return video.currentSrc").await.as_str().unwrap().ends_with("/video.mp4"));
    browser.find("#video").await.click().await.unwrap();
    browser.until("return video.currentTime > 0.3").await;
    // One frame from here on, so that what changes is the boxes.
    browser.ask("video.pause(); video.currentTime = 0").await;
    browser.until("return !video.seeking && video.currentTime === 0").await;

    // The upload with live boxes: more of them from a lower score, fewer without a class.
    let mut canvas = Value::Null;
    browser.press("live boxes").await;
    browser.until("return video.currentSrc.endsWith('/source') && video.readyState >= 2").await;
    let usual = repainted(&browser, &mut canvas).await;
    let score = browser.find("#score").await;
    score.send_keys(&Key::Home.to_string()).await.unwrap();
    let all = repainted(&browser, &mut canvas).await;
    assert!(all > usual, "{all} pixels of boxes from score 0.05 up, {usual} as usual");
    let class = browser.find("#chips button[aria-pressed=true]").await;
    class.click().await.unwrap();
    let filtered = repainted(&browser, &mut canvas).await;
    assert!(filtered < all, "{filtered} pixels without a class, {all} with it");
    assert_eq!(class.attr("aria-pressed").await.unwrap().as_deref(), Some("false"));
    browser.check("live").await;

    // The strip leads through the video: a click in its middle, and the keys.
    let strip = browser.find("#strip").await;
    strip.click().await.unwrap();
    browser.until("return !video.seeking && Math.abs(video.currentTime - video.duration / 2) < 0.1").await;
    strip.send_keys(&Key::Home.to_string()).await.unwrap();
    browser.until("return video.currentTime === 0").await;
    strip.send_keys(&Key::End.to_string()).await.unwrap();
    browser.until("return video.duration - video.currentTime < 0.1").await;
    browser.press("live boxes").await;
    browser.until("return boxes.hidden && video.currentSrc.endsWith('/video.mp4')").await;

    browser.goto("/result").await;
    browser.until_said("total duration time : 0:0").await;
    browser.check("list").await;
    browser.goto(&details).await;
    browser.follow("delete").await;
    browser.until_said("gone for good").await;
    browser.check("resdelete").await;
    browser.press("delete").await;
    browser.until_said("Nothing here yet").await;
    browser.console(None).await;

    browser.goto(&details).await;
    browser.until_said("Not found").await;
    browser.check("not-found").await;
    browser.console(Some("404")).await;
    browser.close().await;
}
