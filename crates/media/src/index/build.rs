//! Making the frame index from packets, and deciding whether it can be trusted.

use std::path::Path;

use ffmpeg_next::Packet;
use ffmpeg_next::codec::packet::Ref as _;
use ffmpeg_next::ffi;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::frame::Video;

use super::units::Units;
use super::{Frame, FrameIndex};
use crate::MediaError;
use crate::decode::nothing_decodable;
use crate::decode::reader::{Reader, fingerprint, pts_of};
use crate::input::{ignore_other_streams, open_input, read_packet, stream_pointers};
use crate::probe::{Limits, Ratio, Source, describe};

/// What came of indexing a video by its packets.
#[derive(Debug, Clone, PartialEq)]
pub enum Indexed {
    /// The index can be trusted.
    Ready(FrameIndex),
    /// It can't: a mezzanine has to be made ([`super::make_mezzanine`]).
    NeedsMezzanine {
        /// Why, for the log.
        why: String,
    },
}

/// Frames decoded to see whether packets and frames agree.
const TRIAL_FRAMES: usize = 48;
/// Keyframes sought to see whether seeking leads where it should.
const TRIAL_SEEKS: usize = 6;

/// Gaps between frames looked at for the nominal rate, twice as many at most.
const SAMPLED_GAPS: usize = 50_000;

/// A keyframe's packet, to be recognised after a seek. Kept apart from the frames: a day of video has millions of
/// those.
struct Key {
    pts: i64,
    fingerprint: u64,
}

/// Reads the packets of the video at `path` and makes its frame index; `progress` is told the frames so far.
///
/// Then decodes a few frames and seeks to a few keyframes, to see that frames come out at the times the packets
/// promise and that seeking leads to the packets it should.
///
/// # Errors
/// [`MediaError::Input`] says why the file is no video that is accepted, [`MediaError::Storage`] that it
/// could not be read.
pub fn build_index(
    path: &Path,
    limits: &Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<Indexed, MediaError> {
    let mut input = open_input(path)?;
    let source = describe(&input, path, limits)?;
    let stream = source.video.stream;
    ignore_other_streams(&mut input, stream);
    // SAFETY: the stream was just described; its parameters live as long as the input.
    let units = Units::of(unsafe { &*(*stream_pointers(&input)[stream]).codecpar });

    let mut begins_with_keyframe = begins_with_keyframe(&input, &source);

    let (mut read, mut keys) = (Vec::<Frame>::new(), Vec::<Key>::new());
    // Time of the last frame shown, and how long it is.
    let mut last = (i64::MIN, 0);
    let mut packet = Packet::empty();
    // The first keyframe's time; an edit list may hide that frame itself.
    let mut start = None;
    let mut distrust = None;
    let mut decoded_at = None;
    while read_packet(&mut input, &mut packet, stream)? {
        let data = packet.data().unwrap_or_default();
        // SAFETY: the packet is valid.
        let flags = unsafe { (*packet.as_ptr()).flags };
        let marked = flags & ffi::AV_PKT_FLAG_KEY != 0 || std::mem::take(&mut begins_with_keyframe);
        let keyframe = marked && units.is_sync(data);
        if start.is_none() && marked {
            start = Some(packet.pts().unwrap_or(i64::MIN));
            if !keyframe {
                distrust = Some("the video begins with a picture that only recovers gradually");
            }
        }
        // Sorted by their times, the frames of two recordings put together would be mixed up.
        if decoded_at > packet.dts() && packet.dts().is_some() {
            distrust = Some("its clock starts again in the middle");
        }
        decoded_at = packet.dts().or(decoded_at);
        if flags & ffi::AV_PKT_FLAG_DISCARD != 0 || !units.is_shown(data) {
            continue;
        }
        let Some(pts) = packet.pts() else {
            distrust = Some("the container does not give every frame a presentation time");
            read.push(Frame { pts: 0, keyframe });
            continue;
        };
        read.push(Frame { pts, keyframe });
        if keyframe {
            keys.push(Key { pts, fingerprint: fingerprint(&packet) });
        }
        last = last.max((pts, packet.duration()));
        check_count(read.len(), limits)?;
        progress(read.len() as u64);
    }
    drop(input);
    if read.is_empty() {
        return Err(MediaError::Input("The video has no frames: choose a video that shows pictures.".into()));
    }
    if let Some(why) = distrust {
        return Ok(Indexed::NeedsMezzanine { why: why.into() });
    }
    let Some(start) = start else {
        return Ok(Indexed::NeedsMezzanine { why: "no keyframe is marked".into() });
    };
    // What is presented before the first keyframe (in the file's order) predicts from frames that are not there.
    read.retain(|frame| frame.pts >= start);
    let Some(index) = order(&source, read, last.1) else {
        return Ok(Indexed::NeedsMezzanine { why: "several frames have the same presentation time".into() });
    };
    if index.frames.is_empty() {
        return Ok(Indexed::NeedsMezzanine { why: "no frame follows the first keyframe".into() });
    }
    check_duration(&index, limits)?;
    Ok(match check_by_trial(path, &index, &keys)? {
        None => Indexed::Ready(index),
        Some(why) => Indexed::NeedsMezzanine { why: why.into() },
    })
}

/// Whether an MP4's table says that its first sample is a keyframe: the flag on the packet is taken away where the
/// packet is damaged, and the frames up to the next keyframe would be lost without a word.
fn begins_with_keyframe(input: &Input, source: &Source) -> bool {
    let stream = stream_pointers(input)[source.video.stream];
    // SAFETY: the stream is valid; the entry, if there is one, is only read.
    source.container.starts_with("mov")
        && unsafe {
            let entry = ffi::avformat_index_get_entry(stream, 0);
            !entry.is_null() && (*entry).flags() & ffi::AVINDEX_KEYFRAME != 0
        }
}

pub(super) fn check_count(frames: usize, limits: &Limits) -> Result<(), MediaError> {
    if frames > limits.max_frames as usize {
        return Err(MediaError::Input(format!(
            "The video has more than {} frames, the most that are accepted: cut it into shorter ones.",
            limits.max_frames
        )));
    }
    Ok(())
}

pub(super) fn check_duration(index: &FrameIndex, limits: &Limits) -> Result<(), MediaError> {
    let (Some(first), Some(last)) = (index.frames.first(), index.frames.last()) else { return Ok(()) };
    let Ratio { num, den } = index.video.time_base;
    let seconds = (last.pts as f64 - first.pts as f64) * f64::from(num) / f64::from(den);
    if seconds > limits.max_duration.as_secs_f64() {
        return Err(MediaError::Input(format!(
            "The video lasts {:.1} hours, and at most {:.1} are accepted: cut it into shorter ones.",
            seconds / 3600.0,
            limits.max_duration.as_secs_f64() / 3600.0
        )));
    }
    Ok(())
}

/// Puts the packets' frames in presentation order. `None` when two frames claim one time.
fn order(source: &Source, mut frames: Vec<Frame>, last_duration: i64) -> Option<FrameIndex> {
    frames.sort_unstable_by_key(|frame| frame.pts);
    frames.shrink_to_fit();
    if frames.windows(2).any(|w| w[0].pts == w[1].pts) {
        return None;
    }
    let mut video = source.video.clone();
    video.frame_rate = nominal_rate(&frames, video.time_base, video.frame_rate);
    let nominal = ticks_of_a_frame(video.time_base, video.frame_rate);
    Some(FrameIndex {
        video,
        audio: source.audio.clone(),
        dropped: source.dropped.clone(),
        frames,
        last_duration: if last_duration > 0 { last_duration } else { nominal },
        numbered: false,
    })
}

/// Ticks a frame lasts at the nominal rate, at least 1.
pub(super) fn ticks_of_a_frame(time_base: Ratio, rate: Ratio) -> i64 {
    let seconds = f64::from(rate.den) / f64::from(rate.num);
    ((seconds * f64::from(time_base.den) / f64::from(time_base.num)).round() as i64).max(1)
}

/// The container's frame rate, unless the frames say that it is nonsense (a clock's rate, say).
pub(super) fn nominal_rate(frames: &[Frame], time_base: Ratio, claimed: Ratio) -> Ratio {
    // Of a long video, gaps here and there tell as much as all of them.
    let step = (frames.len() / SAMPLED_GAPS).max(1);
    let mut gaps: Vec<i64> =
        frames.windows(2).step_by(step).map(|w| w[1].pts.saturating_sub(w[0].pts)).collect();
    if gaps.is_empty() {
        return claimed;
    }
    let middle = gaps.len() / 2;
    let (_, &mut median, _) = gaps.select_nth_unstable(middle);
    let seconds = median as f64 * f64::from(time_base.num) / f64::from(time_base.den);
    let typical = 1.0 / seconds.max(1e-6);
    let rate = f64::from(claimed.num) / f64::from(claimed.den);
    if claimed.num <= 65535 && claimed.den <= 65535 && rate <= typical * 4.0 && rate >= typical / 1.5 {
        return claimed;
    }
    const USUAL: [(i32, i32); 14] = [
        (24000, 1001),
        (24, 1),
        (25, 1),
        (30000, 1001),
        (30, 1),
        (48, 1),
        (50, 1),
        (60000, 1001),
        (60, 1),
        (120_000, 1001),
        (120, 1),
        (10, 1),
        (15, 1),
        (20, 1),
    ];
    let near = |&&(num, den): &&(i32, i32)| (f64::from(num) / f64::from(den) / typical - 1.0).abs() < 0.01;
    // A median rounded to milliseconds can fit two of them: the closest is right more often.
    let distance = |&(num, den): &(i32, i32)| (f64::from(num) / f64::from(den) / typical - 1.0).abs();
    let found = USUAL
        .iter()
        .filter(|(num, _)| *num <= 65535)
        .filter(near)
        .min_by(|a, b| distance(a).total_cmp(&distance(b)));
    found.map_or_else(
        || {
            let mille = (typical * 1000.0).round().clamp(1.0, 65_535_000.0);
            if mille <= 65535.0 {
                Ratio { num: mille as i32, den: 1000 }
            } else {
                Ratio { num: (mille / 1000.0).round() as i32, den: 1 }
            }
        },
        |&(num, den)| Ratio { num, den },
    )
}

/// Decodes the beginning and seeks here and there. Says why the index can't be trusted, if so.
fn check_by_trial(path: &Path, index: &FrameIndex, keys: &[Key]) -> Result<Option<&'static str>, MediaError> {
    let mut reader = Reader::open(path, index.video.stream, 1)?;
    reader.rewind()?;
    let wanted = index.frames.len().min(TRIAL_FRAMES);
    let (mut fed, mut came, mut strangers) = (0, 0u32, 0);
    let mut span: Option<(u32, u32)> = None;
    let mut frame = Video::empty();
    loop {
        // Where nothing has come out, the search for something decodable goes on.
        let more = (fed < wanted || came == 0)
            && reader.feed(|packet| {
                fed += usize::from(packet.pts().and_then(|pts| index.number_at(pts)).is_some());
            })?;
        if !more {
            reader.finish();
        }
        while reader.receive(&mut frame)? {
            match pts_of(&frame).map(|pts| (index.number_at(pts), pts >= index.frames[0].pts)) {
                Some((Some(n), _)) => {
                    came += 1;
                    span = Some(span.map_or((n, n), |(a, b)| (a.min(n), b.max(n))));
                }
                Some((None, true)) => strangers += 1,
                // An edit list's discarded frame, or one before the first keyframe.
                _ => {}
            }
        }
        if !more {
            break;
        }
    }
    if came == 0 && strangers == 0 {
        return Err(nothing_decodable(&index.video.codec));
    }
    if strangers > 0 {
        return Ok(Some("frames come out at other times than the packets say"));
    }
    // Two fields in packets of their own make one frame: every other one comes out. (Frames lost before the first
    // that came, or behind the last, are damage, which is dealt with elsewhere.)
    if span.is_some_and(|(a, b)| u64::from(came) * 10 < u64::from(b - a + 1) * 6) {
        return Ok(Some("fewer frames come out than there are packets"));
    }

    let keyframes: Vec<&Key> = keys.iter().filter(|key| key.pts > index.frames[0].pts).collect();
    for i in 0..TRIAL_SEEKS.min(keyframes.len()) {
        let key = keyframes[(i + 1) * keyframes.len() / TRIAL_SEEKS.min(keyframes.len()) - 1];
        let Some(target) = index.number_at(key.pts) else { continue };
        let met = reader.seek(index, target)?;
        // A landing late or nowhere is dealt with when it happens; a wrong time on a packet would go unseen.
        if let Some(n) = met {
            let pts = index.frames[n as usize].pts;
            let expected = keys.iter().find(|key| key.pts == pts);
            if expected.is_none_or(|key| key.fingerprint != reader.fingerprint()) {
                return Ok(Some("after seeking, packets carry other times"));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(ticks: i64) -> Vec<Frame> {
        (0..100).map(|n| Frame { pts: n * ticks, keyframe: n == 0 }).collect()
    }

    #[test]
    fn a_clock_is_no_frame_rate() {
        let base = Ratio { num: 1, den: 90_000 };
        let of = |ticks, num, den| {
            let rate = nominal_rate(&every(ticks), base, Ratio { num, den });
            (rate.num, rate.den)
        };
        assert_eq!(of(3600, 25, 1), (25, 1));
        assert_eq!(of(3600, 90_000, 1), (25, 1));
        assert_eq!(of(3003, 1000, 1), (30000, 1001));
        assert_eq!(of(12_857, 1000, 1), (7000, 1000));
    }
}
