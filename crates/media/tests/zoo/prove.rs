//! One clip through the code the stages run, and what came of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use media::decode::{decode_all, decode_segment};
use media::encode::{EncoderSettings, SegmentEncoder, SegmentSpec};
use media::index::{FrameIndex, Prepared, prepare};
use media::join::{Container, Joined, join, verify};
use media::probe::Limits;

use crate::clips::{Clip, Times};
use crate::shown::{self, Ticks};

/// What index, decode, render and assemble make of a video, nothing drawn.
pub struct Made {
    pub prepared: Prepared,
    pub mp4: PathBuf,
    pub avi: PathBuf,
    pub joined: [Joined; 2],
    /// Hashes of all frames, segment by segment, and in one straight decode.
    pub segments: Vec<u64>,
    pub straight: Vec<u64>,
    pub concealed: usize,
}

/// Runs a video through the functions that the stages call, in their order.
pub fn make(source: &Path, folder: &Path) -> Made {
    let mezzanine = folder.join("mezzanine");
    let prepared = prepare(source, &Limits::default(), &mezzanine, &mut |_| {}).unwrap();
    let stored = folder.join("index");
    prepared.index.write(&mut File::create(&stored).unwrap()).unwrap();
    let index = FrameIndex::read(&stored).unwrap();
    assert_eq!(index, prepared.index);
    let pictures = if prepared.mezzanine.is_some() { &mezzanine } else { source };

    let settings = EncoderSettings::default();
    let mut hashes = Vec::new();
    let mut concealed = 0;
    let mut encoded = [Vec::new(), Vec::new()];
    for &(first, last) in &prepared.segments {
        let mut encoders = [Container::Mp4, Container::Avi].map(|container| {
            let spec = SegmentSpec {
                codec: container.codec(),
                video: &index.video,
                settings: &settings,
                first,
                threads: 1,
            };
            SegmentEncoder::create(&spec, &folder.join(format!("{first}.{container:?}"))).unwrap()
        });
        concealed += decode_segment(pictures, &index, first, last, 1, &mut |n, picture| {
            assert_eq!(n as usize, hashes.len(), "frames come in order, each once");
            hashes.push(picture.content_hash());
            encoders.iter_mut().try_for_each(|encoder| encoder.push(picture))
        })
        .unwrap()
        .len();
        for (encoder, (container, files)) in
            encoders.into_iter().zip([Container::Mp4, Container::Avi].into_iter().zip(&mut encoded))
        {
            encoder.finish().unwrap();
            files.push(folder.join(format!("{first}.{container:?}")));
        }
    }
    let mut straight = Vec::new();
    decode_all(pictures, &index, 2, &mut |_, picture| {
        straight.push(picture.content_hash());
        Ok(())
    })
    .unwrap();

    let (mp4, avi) = (folder.join("out.mp4"), folder.join("out.avi"));
    let [of_mp4, of_avi] = &encoded;
    let joined =
        [(Container::Mp4, of_mp4, &mp4), (Container::Avi, of_avi, &avi)].map(|(container, files, out)| {
            let joined = join(&index, files, Some(source), container, out, &mut |_| {}).unwrap();
            verify(out, container, &index, &joined, &mut |_| {}).unwrap();
            joined
        });
    Made { prepared, mp4, avi, joined, segments: hashes, straight, concealed }
}

/// One row of the zoo table.
pub struct Row {
    pub name: &'static str,
    pub coding: String,
    pub why: Option<String>,
    pub segments: usize,
    /// Frames of the source by FFmpeg, of the index, of the MP4, of the AVI.
    pub frames: [usize; 4],
    pub same_hashes: bool,
    pub right_numbers: bool,
    /// Worst error of a time in the MP4, in milliseconds, and in ticks of the source.
    pub worst_time: (f64, f64),
    /// The same of the AVI, in ticks of its rate.
    pub worst_tick: f64,
    /// Largest difference of a frame from what FFmpeg shows of the source: levels, on average over it.
    pub colour: Option<f64>,
    pub audio: Vec<String>,
    pub dropped: Vec<String>,
    pub wrong: Vec<String>,
}

pub const HEADER: &str = "| clip | coded | cut | segments | frames: source = index = MP4 = AVI | hashes of segments = straight \
decode | numbers in the pictures | worst time in MP4 | worst tick in AVI | colours off by | audio | left out |\n\
|---|---|---|---|---|---|---|---|---|---|---|---|";

impl Row {
    pub fn markdown(&self) -> String {
        let yes = |is| if is { "yes" } else { "**NO**" };
        let [source, index, mp4, avi] = self.frames;
        let list = |of: &[String]| if of.is_empty() { "–".to_owned() } else { of.join(", ") };
        format!(
            "| {} | {} | {} | {} | {source} = {index} = {mp4} = {avi} | {} | {} | {} | {:.2} | {} | {} | {} |",
            self.name,
            self.coding,
            self.why.as_ref().map_or("direct".to_owned(), |why| format!("mezzanine: {why}")),
            self.segments,
            yes(self.same_hashes),
            yes(self.right_numbers),
            if self.worst_time.0 == 0.0 {
                "0".to_owned()
            } else {
                format!("{:.3} ms ({:.1} ticks)", self.worst_time.0, self.worst_time.1)
            },
            self.worst_tick,
            self.colour.map_or("–".to_owned(), |levels| format!("{levels:.1}")),
            list(&self.audio),
            list(&self.dropped),
        )
    }
}

fn worst(found: &Ticks, truth: impl Fn(usize) -> (i128, i128)) -> f64 {
    (0..found.times.len())
        .map(|n| {
            let ((a, b), (c, d)) = (found.since_first(n), truth(n));
            (a * d - c * b) as f64 / (b * d) as f64
        })
        .fold(0.0, |worst: f64, off| worst.max(off.abs()))
}

/// Makes `clip`, runs it through, and compares with what other programs say.
pub fn prove(clip: &Clip) -> Row {
    let folder = tempfile::tempdir().unwrap();
    let source = clip.make(folder.path());
    let made = make(&source, folder.path());
    let index = &made.prepared.index;
    let (mp4, avi) = (shown::written(&made.mp4), shown::written(&made.avi));
    let source_shows = shown::shown_at(&source);

    let mut wrong = Vec::new();
    let mut expect = |what: &str, found: String, expected: String| {
        if found != expected {
            wrong.push(format!("{what}: {found}, not {expected}"));
        }
    };
    let video = &index.video;
    expect("frames", index.frames.len().to_string(), clip.frames.to_string());
    expect("size", format!("{}x{}", video.width, video.height), format!("{}x{}", clip.size.0, clip.size.1));
    let aspect = video.sample_aspect;
    expect(
        "aspect",
        format!("{}:{}", aspect.num, aspect.den),
        format!("{}:{}", clip.aspect.0, clip.aspect.1),
    );
    expect("mezzanine", format!("{:?}", made.prepared.mezzanine.is_some()), format!("{:?}", clip.mezzanine));
    expect("audio of the MP4", mp4.audio.len().to_string(), clip.audio.to_string());
    expect("audio of the AVI", avi.audio.len().to_string(), clip.audio.to_string());
    expect("left out", format!("{:?}", index.dropped), format!("{:?}", clip.dropped));
    expect(
        "audio left out",
        format!("{:?}", made.joined.iter().flat_map(|j| &j.dropped).collect::<Vec<_>>()),
        "[]".into(),
    );
    expect("concealed", made.concealed.to_string(), "0".into());
    let (width, height) = (clip.size.0.next_multiple_of(2), clip.size.1.next_multiple_of(2));
    for out in [&mp4, &avi] {
        expect(
            "written size",
            format!("{}x{}", out.video["width"], out.video["height"]),
            format!("{width}x{height}"),
        );
    }
    expect(
        "pixels",
        format!("{} {}", mp4.video["pix_fmt"], mp4.video["color_range"]),
        "\"yuv420p\" \"tv\"".into(),
    );

    let same_hashes = made.segments == made.straight && made.segments.len() == index.frames.len();
    expect("hashes", same_hashes.to_string(), "true".into());
    let expected: Vec<u32> = (0..clip.frames).map(|n| (clip.first + n) % 256).collect();
    let mut right_numbers = true;
    let of_mp4 = shown::frames(&made.mp4);
    for frames in [&of_mp4, &shown::frames(&made.avi)] {
        let found: Vec<u32> = frames.iter().map(|frame| shown::code(frame)).collect();
        right_numbers &= found == expected;
        if found != expected {
            let at = found.iter().zip(&expected).position(|(a, b)| a != b);
            let shown = at.map(|at| (at, &found[at..(at + 8).min(found.len())]));
            expect("numbers", format!("{} frames, from {shown:?}", found.len()), "as made".into());
        }
    }

    let truth = |n: usize| match clip.times {
        Times::Every(num, den) | Times::Nearly((num, den), _) => {
            (n as i128 * i128::from(num), i128::from(den))
        }
        Times::AsShown if n < source_shows.times.len() => source_shows.since_first(n),
        // FFmpeg shows fewer frames, which is said elsewhere.
        Times::AsShown => (0, 1),
    };
    let off = worst(&mp4.frames, truth);
    let tick = source_shows.base.0 as f64 / source_shows.base.1 as f64;
    let allowed = if let Times::Nearly(_, ms) = clip.times { ms as f64 / 1000.0 } else { 0.0 };
    expect("times in the MP4 right", (off <= allowed).to_string(), "true".into());
    let rate = avi.video["r_frame_rate"].as_str().unwrap().split_once('/').unwrap();
    let rate = rate.0.parse::<f64>().unwrap() / rate.1.parse::<f64>().unwrap();
    let worst_tick = worst(&avi.frames, truth) * rate;

    let colour = clip.tolerance.map(|tolerance| {
        let of_source = shown::frames(&source);
        expect("frames that FFmpeg shows", of_source.len().to_string(), clip.frames.to_string());
        let differences = of_source.iter().zip(&of_mp4).map(|(a, b)| {
            a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
        });
        let largest = differences.fold(0.0, f64::max);
        if largest > tolerance {
            expect("colours off by", format!("{largest:.1}"), format!("at most {tolerance:.1}"));
        }
        largest
    });
    let how = |j: &Joined| {
        let of = |a: &media::join::JoinedAudio| {
            format!("{}{}", a.codec, if a.transcoded { " encoded" } else { " copied" })
        };
        j.audio.iter().map(of).collect::<Vec<_>>()
    };
    if let Some(folder) = std::env::var_os("BOXREEL_KEEP") {
        fs::copy(&made.mp4, Path::new(&folder).join(format!("{}.mp4", clip.name))).unwrap();
    }
    Row {
        name: clip.name,
        coding: format!(
            "{} {}",
            source_coding(&source),
            if video.orientation == Default::default() { "" } else { "turned" }
        )
        .trim()
        .to_owned(),
        why: made.prepared.mezzanine.clone(),
        segments: made.prepared.segments.len(),
        frames: [
            source_shows.times.len(),
            index.frames.len(),
            mp4.frames.times.len(),
            avi.frames.times.len(),
        ],
        same_hashes,
        right_numbers,
        worst_time: (off * 1000.0, off / tick),
        worst_tick,
        colour,
        audio: how(&made.joined[0]),
        dropped: index.dropped.clone(),
        wrong,
    }
}

/// Codec and pixel format, by ffprobe.
fn source_coding(source: &Path) -> String {
    let all =
        shown::ffprobe(source, &["-select_streams", "V:0", "-show_entries", "stream=codec_name,pix_fmt"]);
    let text = |key: &str| all["streams"][0][key].as_str().unwrap_or("?").to_owned();
    format!("{} {}", text("codec_name"), text("pix_fmt"))
}
