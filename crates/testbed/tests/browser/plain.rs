//! A browser that runs no scripts.

use crate::browser::Browser;
use crate::clip::clip;
use testbed::House;

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_matters_works_without_scripts() {
    let house = House::start();
    let file = clip(house.folder(), "video_3.mp4", 8);
    let browser = Browser::without_scripts(&house.url).await;
    browser.goto("/upload").await;
    browser.choose(&file).await;
    browser.press("upload").await;
    browser.until_said("Uploaded").await;
    let id = browser.find("main code").await.text().await.unwrap();
    assert_eq!(browser.path().await, "/fileUpload", "the form itself was sent");
    browser.follow("return").await;
    browser.follow("see result").await;
    browser.until_said(&format!("your id is : {id}")).await;
    browser.until_reloaded("POSTPROCESSING_COMPLETE").await;
    browser.until_said("total duration time : 0:0").await;
    let avi = browser.link("video_3.avi").await;
    assert_eq!(avi, format!("/v1/jobs/{id}/video.avi"));
    browser.follow("video_3.mp4").await;
    browser.until_said("Downloads").await;
    let video = browser.find("video").await.attr("src").await.unwrap();
    assert_eq!(video, Some(format!("/v1/jobs/{id}/video.mp4")));
    browser.follow("delete").await;
    browser.press("delete").await;
    browser.until_said("Nothing here yet").await;
    browser.close().await;
}
