//! A stranger's file reaches no other file and no network, and a child that meets a limit ends as it should.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use media::MediaError;
use media::child::{Access, ChildError, Limits, Pool, PoolSettings};
use media::index::prepare;
use media::probe::Limits as Accepted;
use tokio_util::sync::CancellationToken;

use crate::bits;
use crate::clips::{self, numbered};
use crate::shown::ffmpeg;
use crate::tasks::{Files, Index};

/// Tells whether a file was opened by anybody (inotify).
struct Watch(libc::c_int);

impl Watch {
    fn on(path: &Path) -> Self {
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the name is a C string; the descriptor is owned by the result.
        let fd = unsafe {
            let fd = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
            assert!(libc::inotify_add_watch(fd, name.as_ptr(), libc::IN_OPEN) >= 0, "inotify");
            fd
        };
        Self(fd)
    }

    fn was_opened(&self) -> bool {
        let mut events = [0_u8; 4096];
        // SAFETY: the buffer is valid for its length.
        unsafe { libc::read(self.0, events.as_mut_ptr().cast(), events.len()) > 0 }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: owned, closed once.
        unsafe { libc::close(self.0) };
    }
}

/// Makes a small clip at `out`.
fn clip(out: &Path, coding: &str) {
    let source = numbered("160x96", "25", "");
    let after: Vec<_> = coding.split_whitespace().chain([out.to_str().unwrap()]).collect();
    let (before, source) = source.rsplit_once(' ').unwrap();
    let before: Vec<_> = before.split_whitespace().filter(|word| *word != "-i").collect();
    ffmpeg(&before, Path::new(source), &after);
}

const X264: &str = "-frames:v 30 -pix_fmt yuv420p -c:v libx264 -preset ultrafast -y";

/// Files that ask for another, `secret`, or for what listens at `port`: name and content.
fn askers(folder: &Path, secret: &Path, port: u16) -> Vec<(&'static str, Vec<u8>)> {
    let other = secret.display();
    let name = secret.file_name().unwrap().to_str().unwrap();
    let url = format!("http://127.0.0.1:{port}/a.ts");
    let text = |text: String| text.into_bytes();
    // Not text by its first bytes, so that FFmpeg's own recognition is what decides.
    let masked = |text: String| [text.as_bytes(), b"\n\x01\x02\x00"].concat();
    let hls = |what: &str| format!("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{what}\n#EXT-X-ENDLIST\n");
    let own = folder.join("own.mov");
    clip(&own, X264);
    let own = fs::read(own).unwrap();
    vec![
        ("hls-file.m3u8", text(hls(&format!("file:{other}")))),
        ("hls-name.mp4", text(hls(name))),
        ("hls-net.mp4", text(hls(&url))),
        ("hls-masked.ts", masked(hls(&format!("file:{other}")))),
        (
            "hls-key.mp4",
            text(format!("#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI=\"file:{other}\"\n#EXTINF:5,\n{name}\n")),
        ),
        ("concat.mp4", text(format!("ffconcat version 1.0\nfile '{other}'\n"))),
        ("concat-masked.mkv", masked(format!("ffconcat version 1.0\nfile '{other}'\n"))),
        ("list.txt", text(format!("file '{other}'\n"))),
        (
            "dash.mpd",
            text(format!(
                "<?xml version=\"1.0\"?><MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\"><Period><AdaptationSet>\
            <Representation><BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>"
            )),
        ),
        (
            "session.sdp",
            text(format!(
                "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n\
            a=rtpmap:96 H264/90000\n"
            )),
        ),
        ("redirect.asx", text(format!("<asx version=\"3.0\"><entry><ref href=\"{url}\"/></entry></asx>"))),
        ("rtsp.mov", masked(format!("RTSPtextrtsp://127.0.0.1:{port}/a\r\n"))),
        ("%d.png", own.clone()),
        ("frame%03d.jpg", own.clone()),
        ("titles.srt", text(format!("1\n00:00:00,000 --> 00:00:01,000\n<img src=\"{other}\">\n"))),
        (
            "vobsub.idx",
            text(format!(
                "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: {other}\n"
            )),
        ),
        ("subs.sub", text(format!("{{0}}{{25}}{{f:{other}}}\n"))),
        ("script.avs", text(format!("DirectShowSource(\"{other}\")\n"))),
        ("reference.mov", bits::mov_with_reference(&own, &other.to_string())),
        ("reference-net.mov", bits::mov_with_reference(&own, &url)),
        (
            "svg.mp4",
            text(format!(
                "<svg xmlns:xlink=\"http://www.w3.org/1999/xlink\"><image xlink:href=\"{url}\"/></svg>"
            )),
        ),
    ]
}

/// Without any fence but FFmpeg's own settings, none of these files makes it open another file or connect.
pub fn no_file_leads_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let secret = folder.join("secret.mov");
    clip(&secret, X264);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let askers = askers(folder, &secret, listener.local_addr().unwrap().port());
    let watch = Watch::on(&secret);
    // What VobSub and numbered pictures would lead to.
    for name in ["vobsub.sub", "1.png", "0.png", "frame001.jpg", "frame000.jpg"] {
        fs::copy(&secret, folder.join(name)).unwrap();
    }
    assert!(watch.was_opened(), "the watch sees what is opened");
    let neighbours: Vec<_> = ["vobsub.sub", "1.png", "0.png", "frame001.jpg", "frame000.jpg"]
        .map(|name| Watch::on(&folder.join(name)))
        .into();
    for (name, content) in askers {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        let outcome = prepare(&path, &Accepted::default(), &folder.join("mezzanine"), &mut |_| {});
        assert!(!watch.was_opened(), "{name} led to another file: {outcome:?}");
        assert!(neighbours.iter().all(|watch| !watch.was_opened()), "{name} led to a neighbour: {outcome:?}");
        assert!(listener.accept().is_err(), "{name} connected: {outcome:?}");
        match outcome {
            // Pictures of their own, whatever the reference or the name says.
            Ok(_) => assert!(name.contains('%') || name.contains("reference"), "{name} was played"),
            Err(MediaError::Input(sentence)) => assert!(sentence.ends_with('.'), "{name}: {sentence}"),
            Err(other) => panic!("{name}: {other:?}"),
        }
    }
}

struct Bench {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    pool: Pool,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("job")).unwrap();
        Self { folder, runtime, pool: Pool::new(PoolSettings { limits, ..PoolSettings::new(1) }) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Indexes `source` in a child that may read it and write into a folder of its own.
    fn index(&self, source: &Path, mezzanine: &Path) -> Result<(Vec<(u32, u32)>, bool), ChildError> {
        let job = self.path("job");
        let access = Access { read: vec![source.to_owned()], write: vec![job.clone(), "/dev/full".into()] };
        let files =
            Files { source: source.to_owned(), index: job.join("index"), mezzanine: mezzanine.to_owned() };
        self.runtime.block_on(self.pool.call::<Index>(&files, &access, &CancellationToken::new(), |_| {}))
    }

    fn storage_error(&self, source: &Path, mezzanine: &Path) -> String {
        match self.index(source, mezzanine) {
            Err(ChildError::Media(MediaError::Storage(sentence))) => sentence,
            other => panic!("{other:?}"),
        }
    }
}

/// Makes the clip of this name from the zoo.
fn of_zoo(name: &str, folder: &Path) -> PathBuf {
    clips::zoo().iter().find(|clip| clip.name == name).unwrap().make(folder)
}

/// A link that takes another file's place after the check of the name leads nowhere: the kernel refuses.
pub fn a_link_to_another_file_is_refused_inside() {
    let bench = Bench::new(Limits::default());
    let secret = bench.path("secret.mp4");
    clip(&secret, X264);
    let job = bench.path("job");
    let link = job.join("upload.mp4");
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    // May use its own folder, and the link is in there; what it leads to is not.
    let access = Access { read: Vec::new(), write: vec![job.clone()] };
    let files = Files { source: link, index: job.join("index"), mezzanine: job.join("mezzanine") };
    let outcome =
        bench.runtime.block_on(bench.pool.call::<Index>(&files, &access, &CancellationToken::new(), |_| {}));
    match outcome {
        Err(ChildError::Media(MediaError::Storage(why))) => assert!(why.contains("permission"), "{why}"),
        other => assert!(!landlock(), "{other:?}"),
    }
}

/// Whether this kernel has landlock.
fn landlock() -> bool {
    // SAFETY: asking for the version takes no pointer.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) >= 1 }
}

/// A full disk and a file beyond the size limit are storage errors with a sentence each; the child lives on.
pub fn a_full_disk_and_a_size_limit_are_said() {
    let limits = Limits { file_bytes: Some(64 << 10), ..Limits::default() };
    let bench = Bench::new(limits);
    let source = of_zoo("h264-raw.h264", bench.folder.path());
    let why = bench.storage_error(&source, Path::new("/dev/full"));
    assert!(why.contains("disk is full"), "{why}");
    let why = bench.storage_error(&source, &bench.path("job/mezzanine"));
    assert!(why.contains("Raise the file size limit"), "{why}");
    let healthy = of_zoo("tiny.mp4", bench.folder.path());
    assert_eq!(bench.index(&healthy, &bench.path("job/none")), Ok((vec![(0, 63), (64, 149)], false)));
}

/// Too little memory is no fault of the file: an error or a death, and the next call works.
pub fn a_memory_limit_ends_the_child_only() {
    let bench = Bench::new(Limits { memory_bytes: Some(160 << 20), ..Limits::default() });
    let large = bench.path("large.mp4");
    clip(&large, "-vf scale=7680:4320 -frames:v 3 -pix_fmt yuv444p -c:v libx264 -preset ultrafast -y");
    match bench.index(&large, &bench.path("job/mezzanine")) {
        Err(ChildError::Media(MediaError::Internal(why))) => assert!(why.contains("memory"), "{why}"),
        Err(ChildError::Crashed { .. }) => {}
        other => panic!("{other:?}"),
    }
    let small = of_zoo("tiny.mp4", bench.folder.path());
    assert_eq!(bench.index(&small, &bench.path("job/none")), Ok((vec![(0, 63), (64, 149)], false)));
}
