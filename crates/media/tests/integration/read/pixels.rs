//! Colours: matrix and range follow the tags, through to the small pictures and the JPEGs.

use super::clips::{Folder, prepared};
use media::decode::decode_segment;
use media::picture::{JpegWriter, Picture, SMALL_BYTES, Shrinker};
use media::probe::{Color, Matrix};

const ORANGE: [u8; 3] = [220, 120, 40];

fn close(got: &[u8], wanted: [u8; 3]) -> bool {
    got.iter().zip(wanted).all(|(&g, w)| g.abs_diff(w) <= 4)
}

/// A picture of one colour, coded as `arguments` say, and our first picture of it.
fn first_picture<T>(
    name: &str,
    size: &str,
    arguments: &str,
    look: impl FnOnce(&Color, &mut Picture) -> T,
) -> T {
    let folder = Folder::new();
    let path = folder.ffmpeg(
        name,
        &format!("-f lavfi -i color=0xDC7828:s={size}:r=25,format=gbrp -frames:v 2 {arguments}"),
    );
    let (prepared, _) = prepared(&folder, &path);
    let color = prepared.index.video.color;
    let (mut look, mut result) = (Some(look), None);
    decode_segment(&path, &prepared.index, 0, 0, 1, &mut |_, picture| {
        result = look.take().map(|look| look(&color, picture));
        Ok(())
    })
    .unwrap();
    result.unwrap()
}

fn assert_orange(name: &str, size: &str, arguments: &str, matrix: Matrix) {
    first_picture(name, size, arguments, |color, picture| {
        assert_eq!(color.matrix, matrix, "{arguments}");
        let mut shrinker = Shrinker::new(color);
        let small = shrinker.shrink(picture).unwrap();
        assert_eq!(small.len(), SMALL_BYTES);
        for pixel in small.chunks(3) {
            assert!(close(pixel, ORANGE), "{arguments}: {pixel:?} in the small picture");
        }
        let jpeg = JpegWriter::new(color, 95).unwrap().encode(picture).unwrap();
        let image: turbojpeg::Image<Vec<u8>> =
            turbojpeg::decompress(&jpeg, turbojpeg::PixelFormat::RGB).unwrap();
        assert_eq!((image.width, image.height), (picture.width() as usize, picture.height() as usize));
        for pixel in image.pixels.chunks_exact(3) {
            assert!(close(pixel, ORANGE), "{arguments}: {pixel:?} in the JPEG");
        }
    });
}

const X264: &str = "-c:v libx264 -preset ultrafast -crf 1";

#[test]
fn tagged_matrices() {
    for (space, matrix) in
        [("bt709", Matrix::Bt709), ("smpte170m", Matrix::Bt601), ("bt2020nc", Matrix::Bt2020)]
    {
        let filter = if space == "bt2020nc" { "bt2020" } else { space };
        let arguments = format!(
            "-vf scale=out_color_matrix={filter}:out_range=tv,format=yuv420p {X264} -colorspace {space} -color_range tv"
        );
        assert_orange("a.mp4", "64x64", &arguments, matrix);
    }
}

#[test]
fn untagged_matrices_follow_the_size() {
    let arguments = |m: &str| {
        format!("-vf scale=out_color_matrix={m}:out_range=tv,format=yuv420p {X264} -colorspace unknown")
    };
    assert_orange("a.mp4", "64x64", &arguments("smpte170m"), Matrix::Bt601);
    assert_orange("a.mp4", "64x720", &arguments("bt709"), Matrix::Bt709);
}

#[test]
fn full_range_deep_colour_and_rgb() {
    let full = format!(
        "-vf scale=out_color_matrix=bt709:out_range=pc,format=yuv420p {X264} -colorspace bt709 -color_range pc"
    );
    assert_orange("a.mp4", "64x64", &full, Matrix::Bt709);
    for format in ["yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le"] {
        let deep = format!(
            "-vf scale=out_color_matrix=bt709:out_range=tv,format={format} {X264} -colorspace bt709 -color_range tv"
        );
        assert_orange("a.mp4", "64x64", &deep, Matrix::Bt709);
    }
    assert_orange("a.mp4", "64x64", "-c:v libx264rgb -preset ultrafast -crf 1 -pix_fmt rgb24", Matrix::Bt601);
    assert_orange("a.mov", "63x41", "-c:v png -pix_fmt rgb24", Matrix::Bt601);
}

#[test]
fn drawing_does_not_reach_the_decoder() {
    let folder = Folder::new();
    let path = folder.clip("a.mp4", 20, "-c:v libx264 -preset ultrafast -bf 0 -g 20");
    let (prepared, _) = prepared(&folder, &path);
    let decode = |draw: bool| {
        let mut hashes = Vec::new();
        decode_segment(&path, &prepared.index, 0, 19, 1, &mut |_, picture| {
            hashes.push(picture.content_hash());
            if draw {
                for plane in picture.planes_mut() {
                    plane.data.fill(77);
                }
            }
            Ok(())
        })
        .unwrap();
        hashes
    };
    assert_eq!(decode(true), decode(false));
}

#[test]
fn small_pictures_average_areas() {
    let folder = Folder::new();
    // Columns alternate black and white: every area of four is grey.
    let path = folder.ffmpeg(
        "a.mkv",
        "-f lavfi -i nullsrc=s=1200x600:r=25,format=gray,geq=lum=mod(X\\,2)*255 -frames:v 1 -vf format=yuv420p -c:v ffv1",
    );
    let (prepared, _) = prepared(&folder, &path);
    decode_segment(&path, &prepared.index, 0, 0, 1, &mut |_, picture| {
        let mut shrinker = Shrinker::new(&prepared.index.video.color);
        let small = shrinker.shrink(picture)?;
        for pixel in small.chunks(3) {
            assert!(close(pixel, [128; 3]), "{pixel:?}");
        }
        Ok(())
    })
    .unwrap();
}
