//! What comes out: videos, pictures, data.

use common::detection::{BoundingBox, Detection, write_detections};

use media::index::{Frame, FrameIndex};
use media::probe::{Color, Matrix, Orientation, Ratio, VideoInfo};
use serde_json::Value;

use crate::house::{TestApp, json};

/// A frame index of `frames` frames, 25 a second.
pub fn frame_index(frames: u32) -> Vec<u8> {
    let index = FrameIndex {
        video: VideoInfo {
            stream: 0,
            codec: "h264".to_owned(),
            coded_width: 100,
            coded_height: 50,
            orientation: Orientation::default(),
            width: 100,
            height: 50,
            sample_aspect: Ratio { num: 1, den: 1 },
            time_base: Ratio { num: 1, den: 25 },
            frame_rate: Ratio { num: 25, den: 1 },
            color: Color { matrix: Matrix::Bt601, primaries: 2, transfer: 2 },
            hdr: None,
        },
        audio: vec![],
        dropped: vec![],
        frames: (0..i64::from(frames)).map(|pts| Frame { pts, keyframe: pts == 0 }).collect(),
        last_duration: 1,
        numbered: false,
    };
    let mut bytes = Vec::new();
    index.write(&mut bytes).unwrap();
    bytes
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
    let nonsense = house.request("GET", &path("video.mp4")).header("Range", "null").send().await.unwrap();
    assert_eq!(nonsense.status(), 200);
    let head = house.request("HEAD", &path("video.mp4")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &"18".parse().unwrap()));
    assert_eq!(house.get(&path("poster.jpg")).await.bytes().await.unwrap(), "the poster");
    assert_eq!(house.get(&path("source")).await.bytes().await.unwrap(), "a video");
}

#[tokio::test]
async fn detections_come_as_coco_table_or_lines_and_filtered() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let path = |what: &str| format!("/v1/jobs/{id}/{what}");
    assert_eq!(house.get(&path("detections.json")).await.status(), 409);
    house.finish(2).await;

    let accepting = async |kind: &str| {
        let request = house.request("GET", &path("detections")).header("Accept", kind);
        request.send().await.unwrap()
    };
    assert_eq!(accepting("image/png").await.status(), 406);
    let lines = accepting("application/x-ndjson").await;
    assert_eq!(lines.headers()["content-type"], "application/jsonl");
    let lines = lines.text().await.unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6, "a car in each of four frames, a person in two");
    assert_eq!(
        lines[0],
        serde_json::json!({
            "frame": 0, "pts_seconds": 0.0, "class": "car", "category_id": 3, "score": 0.9,
            "bbox": [10.0, 10.0, 40.0, 20.0]
        })
    );

    let csv = house.get(&path("detections.csv?min_score=0.5&first_frame=1&last_frame=2")).await;
    assert_eq!(csv.headers()["content-type"], "text/csv; charset=utf-8");
    assert_eq!(
        csv.text().await.unwrap(),
        "frame,pts_seconds,class,score,x_min,y_min,x_max,y_max\n\
         1,0.040000,car,0.900000,10.00,10.00,50.00,30.00\n\
         2,0.080000,car,0.900000,10.00,10.00,50.00,30.00\n"
    );
    let coco = house.get_json(&path("detections.json?class=person&last_frame=99"), 200).await;
    assert_eq!(coco["images"].as_array().unwrap().len(), 4);
    assert_eq!(coco["annotations"].as_array().unwrap().len(), 2);
    let coco = house.get_json(&path("detections?class=2,person&first_frame=3"), 200).await;
    assert_eq!(
        (&coco["images"][0]["id"], coco["annotations"].as_array().unwrap().len()),
        (&Value::from(3), 1)
    );

    // Compressed, as browsers ask for it, it arrives whole as well.
    for format in ["detections.csv", "detections.json", "detections.jsonl"] {
        let request = house.request("GET", &path(&format!("{format}?class=person")));
        let answer = request.header("Accept-Encoding", "gzip").send().await.unwrap();
        assert_eq!(answer.headers()["content-encoding"], "gzip");
        let whole = answer.bytes().await.expect("the answer does not break off");
        assert!(whole.starts_with(&[0x1f, 0x8b]), "{format}");
    }

    // Unfiltered, it is the file on the volume, which can be had in parts.
    let whole = house.get(&path("detections.json")).await;
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    assert_eq!(whole.text().await.unwrap(), "{\"the\": \"merged file\"}");

    for wrong in ["min_score=2", "class=unicorn", "first_frame=4", "first_frame=3&last_frame=2", "frames=3"] {
        assert_eq!(house.get(&path(&format!("detections.csv?{wrong}"))).await.status(), 400, "{wrong}");
    }
}

#[tokio::test]
async fn a_damaged_file_breaks_the_download_off() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    house.finish(1).await;
    let segments = house.store.segments(id).await.unwrap();
    let record = segments[0].files.detections.as_ref().unwrap();
    std::fs::write(house.volume.job(id).named(record), b"rubbish").unwrap();
    let answer = house.get(&format!("/v1/jobs/{id}/detections.csv?min_score=0.1")).await;
    assert!(answer.text().await.is_err(), "half a table must not look whole");
}

/// Names and contents in an archive.
async fn unzipped(house: &TestApp, path: &str) -> Vec<(String, String)> {
    let answer = house.get(path).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"application/zip".parse().unwrap())
    );
    let bytes = answer.bytes().await.unwrap();
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    (0..archive.len())
        .map(|n| {
            let mut file = archive.by_index(n).unwrap();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut file, &mut text).unwrap();
            (file.name().unwrap().into_owned(), text)
        })
        .collect()
}

#[tokio::test]
async fn texts_and_pictures_come_as_archives() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let path = |what: &str| format!("/v1/jobs/{id}/{what}");
    assert_eq!(house.get(&path("txts.zip")).await.status(), 409);
    house.finish(1).await;
    let texts = unzipped(&house, &path("txts.zip")).await;
    assert_eq!(texts[1], ("txts/infer1.txt".to_owned(), "0.1\n0.2\n0.3\n0.4\n1\n".to_owned()));
    let pictures = unzipped(&house, &path("frames.zip")).await;
    assert_eq!(pictures[0], ("tar_frame/tar_0.jpg".to_owned(), "boxed 0".to_owned()));
    let both: Vec<String> =
        unzipped(&house, &path("frames.zip?of=both")).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        both,
        ["src_frame/frame_0.jpg", "tar_frame/tar_0.jpg", "src_frame/frame_1.jpg", "tar_frame/tar_1.jpg"]
    );
    assert_eq!(house.get(&path("frames.zip?of=none")).await.status(), 400);

    let answer = house.request("POST", "/v1/jobs?keep_frames=false").body("a video").send().await.unwrap();
    let id = crate::house::id_of(&json(answer, 202).await);
    house.finish(1).await;
    let error = house.get_json(&format!("/v1/jobs/{id}/frames.zip"), 409).await;
    assert_eq!(error["error"]["code"], "not_made");
}
