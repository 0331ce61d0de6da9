//! Pictures stand upright, whatever way round they were coded, and odd sizes stay odd.

use std::fs;

use super::clips::{Folder, prepared, shown_by_ffmpeg, shown_by_us};
use media::decode::decode_all;
use media::probe::Ratio;

/// Overwrites the display matrix in the video track's header (`tkhd`, version 0) with `[a, b, c, d]`.
fn set_matrix(bytes: &mut [u8], [a, b, c, d]: [i32; 4]) {
    let at = bytes.windows(4).position(|w| w == b"tkhd").expect("a track header") + 4 + 40;
    let one = 1 << 16;
    let matrix = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30];
    for (i, value) in matrix.into_iter().enumerate() {
        bytes[at + 4 * i..][..4].copy_from_slice(&value.to_be_bytes());
    }
}

#[test]
fn all_eight_display_matrices() {
    let folder = Folder::new();
    let clip = folder.ffmpeg(
        "a.mp4",
        "-f lavfi -i testsrc2=s=160x96:r=25 -frames:v 3 -c:v libx264 -preset ultrafast -pix_fmt yuv420p -vf setsar=4/3",
    );
    let bytes = fs::read(clip).unwrap();
    for (number, matrix) in [
        [1, 0, 0, 1],
        [0, 1, -1, 0],
        [-1, 0, 0, -1],
        [0, -1, 1, 0],
        [-1, 0, 0, 1],
        [1, 0, 0, -1],
        [0, 1, 1, 0],
        [0, -1, -1, 0],
    ]
    .into_iter()
    .enumerate()
    {
        let mut turned = bytes.clone();
        set_matrix(&mut turned, matrix);
        let path = folder.path(&format!("{number}.mp4"));
        fs::write(&path, turned).unwrap();
        let (prepared, _) = prepared(&folder, &path);
        let video = &prepared.index.video;
        let on_its_side = matrix[0] == 0;
        let (size, aspect) = if on_its_side {
            ((96, 160), Ratio { num: 3, den: 4 })
        } else {
            ((160, 96), Ratio { num: 4, den: 3 })
        };
        assert_eq!((video.width, video.height), size, "{matrix:?}");
        assert_eq!(video.sample_aspect, aspect, "{matrix:?}");
        assert!(
            shown_by_us(&path, &prepared.index) == shown_by_ffmpeg(&path),
            "{matrix:?}: the pictures differ"
        );
    }
}

#[test]
fn odd_sizes_are_padded_by_edge_pixels() {
    let folder = Folder::new();
    let path = folder.ffmpeg(
        "odd.webm",
        "-f lavfi -i testsrc=s=101x77:r=25 -frames:v 5 -c:v libvpx-vp9 -cpu-used 8 -deadline realtime -pix_fmt yuv420p",
    );
    let (prepared, _) = prepared(&folder, &path);
    let index = &prepared.index;
    assert_eq!((index.video.width, index.video.height), (101, 77));
    assert!(shown_by_us(&path, index) == shown_by_ffmpeg(&path));
    decode_all(&path, index, 1, &mut |_, picture| {
        let [luma, chroma, _] = picture.planes();
        assert_eq!((luma.width, luma.height, chroma.width, chroma.height), (102, 78, 51, 39));
        for y in 0..78 {
            assert_eq!(luma.row(y)[101], luma.row(y)[100]);
        }
        assert_eq!(luma.row(77), luma.row(76));
        Ok(())
    })
    .unwrap();
}

#[test]
fn odd_sizes_go_through_a_mezzanine() {
    let folder = Folder::new();
    let path = folder.ffmpeg(
        "odd.mkv",
        "-f lavfi -i testsrc=s=101x77:r=25 -frames:v 400 -c:v libvpx-vp9 -g 9999 -cpu-used 8 -deadline realtime -pix_fmt \
         yuv420p",
    );
    let (prepared, pictures) = prepared(&folder, &path);
    assert!(prepared.mezzanine.is_some());
    let size = shown_by_us(&pictures, &prepared.index).len();
    assert_eq!(size, 400 * (101 * 77 + 2 * 51 * 39));
}

#[test]
fn rotated_by_metadata() {
    let folder = Folder::new();
    let clip = folder.clip("a.mp4", 5, "-c:v libx264 -preset ultrafast");
    let path = folder.ffmpeg("turned.mov", &format!("-i {} -c copy -metadata:s:v rotate=90", clip.display()));
    let (prepared, _) = prepared(&folder, &path);
    assert_eq!((prepared.index.video.width, prepared.index.video.height), (120, 160));
    assert!(shown_by_us(&path, &prepared.index) == shown_by_ffmpeg(&path));
}
