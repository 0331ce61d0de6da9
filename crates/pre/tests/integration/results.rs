//! What comes out: videos, pictures, data.

use common::detection::{BoundingBox, Detection, write_detections};

use crate::house::{TestApp, json};

/// A frame index of `frames` frames, 25 a second.
pub fn frame_index(frames: u32) -> Vec<u8> {
    format!("{frames} frames").into_bytes()
}

/// The detections of frames `first` to `last`: a car of score 0.9 in each, and a person of score 0.2 in even ones.
pub fn detections(first: u32, last: u32) -> Vec<u8> {
    let bbox = BoundingBox { min_x: 0.1, min_y: 0.2, max_x: 0.5, max_y: 0.6 };
    let frames: Vec<Vec<Detection>> = (first..=last)
        .map(|n| {
            let mut found = vec![Detection { bbox, score: 0.9, class: 2 }];
            if n % 2 == 0 {
                found.push(Detection { bbox, score: 0.2, class: 0 });
            }
            found
        })
        .collect();
    let mut bytes = Vec::new();
    write_detections(&mut bytes, first, &frames).unwrap();
    bytes
}

#[tokio::test]
async fn the_results_are_downloaded_whole_and_in_parts() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let path = |what: &str| format!("/v1/jobs/{id}/{what}");
    let early = json(house.get(&path("video.avi")).await, 409).await;
    assert_eq!(early["error"]["code"], "not_ready");
    house.finish(1).await;

    let avi = house.get(&path("video.avi")).await;
    assert_eq!(avi.headers()["content-type"], "video/x-msvideo");
    let name = avi.headers()["content-disposition"].to_str().unwrap().to_owned();
    assert!(name.starts_with(&format!("attachment; filename=\"target_{id}.avi\"")), "{name}");
    assert_eq!(avi.headers()["accept-ranges"], "bytes");
    assert_eq!(avi.bytes().await.unwrap(), "0123456789 the avi");

    let part = house.request("GET", &path("video.mp4")).header("Range", "bytes=2-4").send().await.unwrap();
    assert_eq!(
        (part.status().as_u16(), &part.headers()["content-range"]),
        (206, &"bytes 2-4/18".parse().unwrap())
    );
    assert_eq!(part.headers()["content-type"], "video/mp4");
    assert_eq!(part.bytes().await.unwrap(), "234");
    let end = house.request("GET", &path("video.mp4")).header("Range", "bytes=-3").send().await.unwrap();
    assert_eq!(end.bytes().await.unwrap(), "mp4");
    let beyond = house.request("GET", &path("video.mp4")).header("Range", "bytes=99-").send().await.unwrap();
    assert_eq!(beyond.status(), 416);
    let head = house.request("HEAD", &path("video.mp4")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &"18".parse().unwrap()));
    assert_eq!(house.get(&path("poster.jpg")).await.bytes().await.unwrap(), "the poster");
    assert_eq!(house.get(&path("source")).await.bytes().await.unwrap(), "a video");
}
