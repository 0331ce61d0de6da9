//! Joining a job's encoded segments into one file, without encoding again, with the source's timestamps and
//! audio; and probing what was written.
//!
//! * **MP4**: every timestamp of the frame index, exactly. Time zero is the earliest of video and audio, moved
//!   down to a tick of the video's time base; what begins later is delayed by an edit list, what only exists to
//!   prime a decoder is hidden by one.
//! * **AVI**: knows no timestamps, so every frame sits at the tick of the nominal rate nearest to its time, or
//!   at the next free one; ticks between, and those the last frame stays for, hold empty chunks. Time zero is the first frame; audio that
//!   begins elsewhere is encoded again with silence before it, or cut.

mod audio;
mod output;
mod transcode;

use std::path::{Path, PathBuf};

use ffmpeg_next::Packet;
use ffmpeg_next::ffi::{AV_PKT_FLAG_KEY, AVMediaType, AVRational};
use serde::{Deserialize, Serialize};

use self::audio::{Refusal, Track, time_of};
use self::output::Output;
use crate::MediaError;
use crate::av::{codec_name, rescale};
use crate::encode::{coded_size, nominal_rate};
use crate::index::FrameIndex;
use crate::input::{ignore_other_streams, open_input, read_packet, stream_pointers};
use crate::packets::{Codec, PacketReader, PacketsError, PacketsHeader, storage};

/// A track this little (seconds) before the first frame does not move time zero: it is rounding.
const START_ROUNDING: f64 = 0.0015;
/// The movie's own clock, which the start of a track is rounded to, ticks at least this often a second.
const MOVIE_TICKS: i64 = 10_000;
/// Frames between two reports of progress.
const REPORT_EVERY: u64 = 16;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Container {
    /// MP4 with H.264, the index at the front.
    Mp4,
    /// AVI with MPEG-4 part 2.
    Avi,
}

impl Container {
    /// What its segments are encoded as.
    #[must_use]
    pub fn codec(self) -> Codec {
        match self {
            Self::Mp4 => Codec::H264,
            Self::Avi => Codec::Mpeg4,
        }
    }
}

/// What is wrong with a segment's packet file: it must be rendered again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SegmentFault {
    /// There is no such file.
    #[error("its file is missing")]
    Missing,
    /// The file is not what was written, or holds other frames than the segment's.
    #[error("{0}")]
    Damaged(String),
    /// Codec, size or parameter sets are not those of the video and of most other segments.
    #[error("it was encoded with other parameters than the others")]
    Parameters,
}

/// Why a join failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum JoinError {
    /// One segment must go back to render.
    #[error("Segment {segment} cannot be used: {fault}.")]
    Segment {
        /// Its place in the list given, from 0.
        segment: usize,
        /// What is wrong.
        fault: SegmentFault,
    },
    /// Anything else.
    #[error(transparent)]
    Media(#[from] MediaError),
}

/// An audio track of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedAudio {
    /// FFmpeg's name of the codec in the source.
    pub codec: String,
    /// It was encoded again, as the container does not take it.
    pub transcoded: bool,
}

/// What [`join`] wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Frames.
    pub frames: u64,
    /// Audio tracks, in order.
    pub audio: Vec<JoinedAudio>,
    /// Audio tracks left out, each as a phrase with the reason.
    pub dropped: Vec<String>,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// Joins `segments` (packet files, in order, together exactly the frames of `index`) into a file at `out`, with
/// the audio of `source`, if given.
///
/// `progress` is called with a number that rises: the frames joined so far, and then, while the file is
/// closed and its index moved to the front, one more for every piece moved.
///
/// Blocks until done. Memory: one packet of each track, and FFmpeg's list of packets (under 100 bytes each). On
/// an error a part of the file may be left at `out`; syncing and renaming are up to the caller.
///
/// # Errors
/// [`JoinError::Segment`] when a segment must be rendered again, [`JoinError::Media`] otherwise.
pub fn join(
    index: &FrameIndex,
    segments: &[PathBuf],
    source: Option<&Path>,
    container: Container,
    out: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Joined, JoinError> {
    let header = compare(index, segments, container)?;
    let mut dropped = Vec::new();
    let mut tracks = match source {
        Some(source) => open_tracks(index, source, container, &mut dropped)?,
        None => Vec::new(),
    };
    let plan = Plan::new(index, container, &tracks)?;
    let mut output = Output::create(out, container)?;
    output.add_video(index, &header, &plan)?;
    for track in &tracks {
        output.add_audio(track)?;
    }
    output.begin(&plan)?;

    let mut writer =
        Writer { index, plan: &plan, output: &mut output, tracks: &mut tracks, frame: 0, tick: 0 };
    for (segment, path) in segments.iter().enumerate() {
        let at = |error| fault(segment, path, error);
        let mut reader = PacketReader::open(path).map_err(at)?;
        // Compared again: between then and now the file may have been exchanged.
        if *reader.header() != (PacketsHeader { first: reader.header().first, ..header.clone() }) {
            return Err(JoinError::Segment { segment, fault: SegmentFault::Parameters });
        }
        expect_first(segment, reader.header().first, writer.frame)?;
        while let Some(packet) = reader.read().map_err(at)? {
            if writer.frame >= index.frames.len() {
                let text = format!("it goes on after the video's {} frames", index.frames.len());
                return Err(JoinError::Segment { segment, fault: SegmentFault::Damaged(text) });
            }
            if packet.offset == 0 && !packet.keyframe {
                let text = "it does not begin with a keyframe".to_owned();
                return Err(JoinError::Segment { segment, fault: SegmentFault::Damaged(text) });
            }
            writer.video(packet.data, packet.keyframe)?;
            if (writer.frame as u64).is_multiple_of(REPORT_EVERY) {
                progress(writer.frame as u64);
            }
        }
        if reader.count() == 0 {
            let fault = SegmentFault::Damaged("it holds no frames".to_owned());
            return Err(JoinError::Segment { segment, fault });
        }
    }
    if writer.frame != index.frames.len() {
        // Every other segment's first frame was where the one before it ended.
        let text = format!("the video ends at frame {} of {}", writer.frame, index.frames.len());
        let segment = segments.len().saturating_sub(1);
        return Err(JoinError::Segment { segment, fault: SegmentFault::Damaged(text) });
    }
    writer.end()?;
    let frames = writer.frame as u64;
    output.finish(frames, progress)?;
    let bytes = std::fs::metadata(out).map_err(|error| storage("read", out, &error))?.len();
    let audio =
        tracks.iter().map(|t| JoinedAudio { codec: t.codec.clone(), transcoded: t.transcoded() }).collect();
    Ok(Joined { frames, audio, dropped, bytes })
}

/// Reads every segment's header before anything is written, and finds the one they share but for `first`.
/// Where they differ, the fewer are wrong: a lone segment 0 must not send all the others back to render.
fn compare(
    index: &FrameIndex,
    segments: &[PathBuf],
    container: Container,
) -> Result<PacketsHeader, JoinError> {
    let (width, height) = coded_size(&index.video);
    // Each kind of header, how many segments have it, and the first that has.
    let mut kinds: Vec<(PacketsHeader, usize, usize)> = Vec::new();
    for (segment, path) in segments.iter().enumerate() {
        let reader = PacketReader::open(path).map_err(|error| fault(segment, path, error))?;
        let header = PacketsHeader { first: 0, ..reader.header().clone() };
        if (header.codec, header.width, header.height) != (container.codec(), width, height) {
            return Err(JoinError::Segment { segment, fault: SegmentFault::Parameters });
        }
        match kinds.iter_mut().find(|(kind, ..)| *kind == header) {
            Some((_, count, _)) => *count += 1,
            None => kinds.push((header, 1, segment)),
        }
    }
    // Of equals the earlier is kept, as `rev` makes it the last of the largest.
    let common = kinds.iter().rev().max_by_key(|(_, count, _)| *count).map(|(kind, ..)| kind.clone());
    let common = common.ok_or_else(|| MediaError::Internal("there are no segments to join".to_owned()))?;
    match kinds.iter().find(|(kind, ..)| *kind != common) {
        Some(&(.., segment)) => Err(JoinError::Segment { segment, fault: SegmentFault::Parameters }),
        None => Ok(common),
    }
}

fn expect_first(segment: usize, found: u32, expected: usize) -> Result<(), JoinError> {
    if found as usize == expected {
        return Ok(());
    }
    // A segment that begins too late, after one that lacks frames: the one before is at fault.
    let (segment, text) = match segment.checked_sub(1) {
        Some(before) if found as usize > expected => {
            (before, format!("it ends before frame {expected}, not {found}"))
        }
        _ => (segment, format!("it begins with frame {found}, not {expected}")),
    };
    Err(JoinError::Segment { segment, fault: SegmentFault::Damaged(text) })
}

fn fault(segment: usize, path: &Path, error: PacketsError) -> JoinError {
    let fault = match error {
        PacketsError::Damaged(how) => SegmentFault::Damaged(how),
        PacketsError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => SegmentFault::Missing,
        PacketsError::Io(error) => return storage("read", path, &error).into(),
    };
    JoinError::Segment { segment, fault }
}

fn open_tracks(
    index: &FrameIndex,
    source: &Path,
    container: Container,
    dropped: &mut Vec<String>,
) -> Result<Vec<Track>, MediaError> {
    let base = index.video.time_base;
    let first = index.frames.first().map_or(0, |frame| frame.pts);
    let video_start = first as f64 * f64::from(base.num) / f64::from(base.den);
    let mut tracks = Vec::new();
    for audio in &index.audio {
        match Track::open(source, audio.stream, container, video_start) {
            Ok(track) => tracks.push(track),
            Err(Refusal::Dropped(why)) => dropped.push(why),
            Err(Refusal::Fatal(error)) => return Err(error),
        }
    }
    Ok(tracks)
}

/// The result's clock.
pub(crate) struct Plan {
    container: Container,
    /// Source time, in ticks of the index, that becomes zero.
    zero: i64,
    /// Seconds in a tick of the index.
    source: AVRational,
    /// Seconds in a tick of the result's video. MP4: every time of the index is a whole number of them.
    video: AVRational,
    /// MP4: ticks a second of the movie's own clock.
    movie: i64,
    /// MP4: ticks of the result in `source.num` / `source.den` seconds, as a fraction; exact.
    scale: (i64, i64),
}

impl Plan {
    fn new(index: &FrameIndex, container: Container, tracks: &[Track]) -> Result<Self, MediaError> {
        let time_base = index.video.time_base;
        let source = AVRational { num: time_base.num, den: time_base.den };
        let (Some(first), true) = (index.frames.first(), time_base.num > 0 && time_base.den > 0) else {
            return Err(MediaError::Internal("the frame index has no frames or no time base".to_owned()));
        };
        let rate = nominal_rate(index.video.frame_rate);
        let mut plan = Self {
            container,
            zero: first.pts,
            source,
            video: AVRational { num: rate.den, den: rate.num },
            movie: 0,
            scale: (1, 1),
        };
        if container == Container::Avi {
            return Ok(plan);
        }
        let seconds = |pts: i64| pts as f64 * f64::from(source.num) / f64::from(source.den);
        for track in tracks {
            if (track.start() as f64) / f64::from(track.rate) < seconds(first.pts) - START_ROUNDING {
                let ticks = i128::from(track.start()) * i128::from(source.den);
                let per_tick = i128::from(track.rate) * i128::from(source.num);
                let start = i64::try_from(ticks.div_euclid(per_tick)).unwrap_or(first.pts);
                plan.zero = plan.zero.min(start);
            }
        }
        // 1/90000 stays 90000 ticks a second; 1001/30000 becomes 30000 with every time a multiple of 1001. A
        // coarser clock only where the gaps between frames would not fit the format's 31 bits otherwise.
        let common = gcd(i64::from(source.num), i64::from(source.den)).max(1);
        let (num, den) = (i64::from(source.num) / common, i64::from(source.den) / common);
        let steps = || {
            let starts = index.frames.iter().map(|frame| frame.pts);
            let gaps = index.frames.windows(2).map(|pair| pair[1].pts.saturating_sub(pair[0].pts));
            gaps.chain([index.last_duration, starts.min().unwrap_or(0).saturating_sub(plan.zero)])
        };
        let largest = steps().max().unwrap_or(0);
        let fits = |step: i64, divisor: i64| {
            step.checked_mul(num).is_some_and(|ticks| ticks / divisor <= i64::from(i32::MAX))
        };
        let mut divisor = 1;
        if !fits(largest, divisor) {
            divisor = steps().fold(den, |common, step| gcd(common, step.saturating_mul(num))).max(1);
        }
        if !fits(largest, divisor) {
            return Err(MediaError::Input(
                "Two frames of the video are too far apart in time for an MP4: cut the video at the gap."
                    .to_owned(),
            ));
        }
        plan.scale = (num, divisor);
        let timescale = den / divisor;
        plan.video = AVRational { num: 1, den: i32::try_from(timescale).unwrap_or(i32::MAX) };
        plan.movie = timescale * ((MOVIE_TICKS + timescale - 1) / timescale);
        Ok(plan)
    }

    /// A frame's time in the result, from its PTS; for an AVI not yet moved to a free tick.
    fn video_time(&self, pts: i64) -> i64 {
        let ticks = pts - self.zero;
        match self.container {
            Container::Mp4 => self.exact(ticks),
            Container::Avi => rescale(ticks, self.source, self.video),
        }
    }

    /// A span of ticks of the index in ticks of the MP4's video.
    fn exact(&self, ticks: i64) -> i64 {
        let (num, divisor) = self.scale;
        (i128::from(ticks) * i128::from(num) / i128::from(divisor)) as i64
    }

    /// The time zero of the result in samples of a track's source time.
    fn audio_zero(&self, rate: i32) -> i64 {
        rescale(self.zero, self.source, AVRational { num: 1, den: rate })
    }

    fn last_duration(&self, index: &FrameIndex) -> i64 {
        match self.container {
            Container::Mp4 => self.exact(index.last_duration.max(1)),
            Container::Avi => 1,
        }
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

/// Merges video and audio by time.
struct Writer<'a> {
    index: &'a FrameIndex,
    plan: &'a Plan,
    output: &'a mut Output,
    tracks: &'a mut [Track],
    frame: usize,
    /// AVI: the next free tick.
    tick: i64,
}

impl Writer<'_> {
    /// Writes the next frame, after all audio that is due before it.
    fn video(&mut self, data: &[u8], keyframe: bool) -> Result<(), MediaError> {
        let frames = &self.index.frames;
        let mut time = self.plan.video_time(frames[self.frame].pts);
        let mut duration = match frames.get(self.frame + 1) {
            Some(next) => self.plan.video_time(next.pts) - time,
            None => self.plan.last_duration(self.index),
        };
        if self.plan.container == Container::Avi {
            time = time.max(self.tick);
            duration = 1;
            self.empty_until(time)?;
            self.tick += 1;
        }
        self.audio_until(Some(time))?;
        self.output.write(0, data, time, duration, if keyframe { AV_PKT_FLAG_KEY } else { 0 })?;
        self.frame += 1;
        Ok(())
    }

    /// Writes what comes after the last frame: in an AVI the ticks it goes on being shown, and all audio left.
    fn end(&mut self) -> Result<(), MediaError> {
        if let (Container::Avi, Some(last)) = (self.plan.container, self.index.frames.last()) {
            let end = last.pts.saturating_add(self.index.last_duration.max(0));
            self.empty_until(self.plan.video_time(end))?;
        }
        self.audio_until(None)
    }

    /// AVI: fills the ticks up to `time` with empty chunks, which show the frame before again.
    fn empty_until(&mut self, time: i64) -> Result<(), MediaError> {
        while self.tick < time {
            self.audio_until(Some(self.tick))?;
            self.output.write(0, &[], self.tick, 1, 0)?;
            self.tick += 1;
        }
        Ok(())
    }

    /// Writes the audio that is due before `time` (in ticks of the video), or all that is left.
    fn audio_until(&mut self, time: Option<i64>) -> Result<(), MediaError> {
        loop {
            let video = self.plan.video;
            let mut earliest: Option<(usize, i64)> = None;
            for (at, track) in self.tracks.iter().enumerate() {
                if track.peek().is_none() {
                    continue;
                }
                let samples = track.time() - self.plan.audio_zero(track.rate);
                let due = rescale(samples, AVRational { num: 1, den: track.rate }, video);
                if time.is_none_or(|time| due <= time) && earliest.is_none_or(|(_, other)| due < other) {
                    earliest = Some((at, due));
                }
            }
            let Some((at, _)) = earliest else { return Ok(()) };
            let track = &mut self.tracks[at];
            let zero = self.plan.audio_zero(track.rate);
            if let Some(packet) = track.peek() {
                self.output.write_packet(at + 1, packet, zero)?;
            }
            track.advance()?;
        }
    }
}

/// Probes a file that [`join`] wrote: it must open, hold every frame of `index` at its time (MP4: exactly, to
/// the last one's duration; AVI: at its tick), begin with a keyframe and have as many audio tracks as
/// `joined` says. `progress` is called with the number of frames found so far.
///
/// # Errors
/// [`MediaError::Storage`] when the file cannot be read, [`MediaError::Internal`] when it is not as it must be.
pub fn verify(
    out: &Path,
    container: Container,
    index: &FrameIndex,
    joined: &Joined,
    progress: &mut dyn FnMut(u64),
) -> Result<(), MediaError> {
    let wrong = |what: String| MediaError::Internal(format!("The written file {} {what}.", out.display()));
    let mut input = open_input(out).map_err(|error| match error {
        // Nobody uploaded it: what is wrong with it is no fault of the source.
        MediaError::Input(why) => wrong(format!("does not open ({why})")),
        other => other,
    })?;
    let (mut video, mut audio) = (None, 0);
    for (at, &stream) in stream_pointers(&input).iter().enumerate() {
        // SAFETY: streams of an open input have parameters.
        let par = unsafe { (*stream).codecpar };
        // SAFETY: as above.
        let (medium, codec) = unsafe { ((*par).codec_type, (*par).codec_id) };
        match medium {
            AVMediaType::AVMEDIA_TYPE_VIDEO => video = Some((at, stream, codec_name(codec))),
            AVMediaType::AVMEDIA_TYPE_AUDIO => audio += 1,
            _ => {}
        }
    }
    let (at, stream, codec) = video.ok_or_else(|| wrong("has no video".to_owned()))?;
    let expected = match container.codec() {
        Codec::H264 => "h264",
        Codec::Mpeg4 => "mpeg4",
    };
    if codec != expected || audio != joined.audio.len() {
        return Err(wrong(format!("holds {codec} and {audio} audio tracks")));
    }
    // SAFETY: the stream belongs to the open input.
    let time_base = unsafe { (*stream).time_base };
    let plan = Plan::new(index, container, &[])?;
    let mut packet = Packet::empty();
    let (mut found, mut first, mut tick) = (0_usize, 0, 0);
    ignore_other_streams(&mut input, at);
    while read_packet(&mut input, &mut packet, at)? {
        let time = time_of(&packet).ok_or_else(|| wrong("has a frame without a time".to_owned()))?;
        if found == 0 {
            first = time;
            if !packet.is_key() {
                return Err(wrong("does not begin with a keyframe".to_owned()));
            }
        }
        let Some(frame) = index.frames.get(found) else {
            return Err(wrong(format!("has more than {} frames", index.frames.len())));
        };
        let mut expected = plan.video_time(frame.pts) - plan.video_time(index.frames[0].pts);
        if container == Container::Avi {
            expected = expected.max(tick);
            tick = expected + 1;
        }
        if !same(time - first, time_base, expected, plan.video) {
            return Err(wrong(format!("shows frame {found} at another time")));
        }
        found += 1;
        if (found as u64).is_multiple_of(REPORT_EVERY) {
            progress(found as u64);
        }
    }
    let Some(last) = index.frames.last().filter(|_| found == index.frames.len()) else {
        return Err(wrong(format!("has {found} frames, not {}", index.frames.len())));
    };
    // The stream's duration, as FFmpeg misreports the last packet's where a track begins late.
    let whole = plan.video_time(last.pts) - plan.video_time(index.frames[0].pts) + plan.last_duration(index);
    // SAFETY: the stream belongs to the open input.
    if container == Container::Mp4 && !same(unsafe { (*stream).duration }, time_base, whole, plan.video) {
        return Err(wrong("shows the last frame for another time".to_owned()));
    }
    Ok(())
}

/// Whether two spans are the same, exactly.
fn same(a: i64, a_base: AVRational, b: i64, b_base: AVRational) -> bool {
    i128::from(a) * i128::from(a_base.num) * i128::from(b_base.den)
        == i128::from(b) * i128::from(b_base.num) * i128::from(a_base.den)
}
