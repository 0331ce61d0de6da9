//! What runs in the children of these tests.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use media::MediaError;
use media::child::{Progress, Registry, Task};
use serde::{Deserialize, Serialize};

pub fn registry() -> Registry {
    Registry::new().with::<Act>()
}

pub struct Act;

#[derive(Serialize, Deserialize)]
pub enum Deed {
    Echo(String),
    ProcessId,
    /// Ticks the process id, then does nothing for ever.
    Hang,
    Tick(u64),
    Abort,
    Segfault,
    Exit(i32),
    Panic,
    Allocate(usize),
    /// Writes to whatever descriptor the answers go by.
    Babble,
    /// Closes it, and goes on.
    FallSilent,
    Print,
    Signals,
    Threads,
    EncodeH264,
    Read(PathBuf),
    Write(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    /// Leaves a file named by the first and waits for the second.
    Meet(PathBuf, PathBuf),
    Connect(u16),
    Run,
    Exec,
    SignalParent,
    Environment,
    OpenFiles,
    Status,
    /// The signal it gets when its parent dies.
    DeathSignal,
}

/// The descriptor of the answers: the second that a child opens.
const ANSWERS: i32 = 4;

impl Task for Act {
    const NAME: &'static str = "act";
    type Request = Deed;
    type Response = String;

    fn run(deed: Deed, progress: &Progress) -> Result<String, MediaError> {
        act(deed, progress).map_err(|error| MediaError::Storage(error.to_string()))
    }
}

fn act(deed: Deed, progress: &Progress) -> io::Result<String> {
    let own_id = std::process::id();
    match deed {
        Deed::Echo(text) => return Ok(text),
        Deed::ProcessId => return Ok(own_id.to_string()),
        Deed::Hang => {
            progress.tick(own_id.into());
            loop {
                std::thread::park();
            }
        }
        Deed::Tick(times) => (0..times).for_each(|_| progress.tick(1)),
        Deed::Abort => std::process::abort(),
        // SAFETY: none; that is the point.
        Deed::Segfault => unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) },
        Deed::Exit(status) => std::process::exit(status),
        Deed::Panic => panic!("the sky is falling"),
        Deed::Allocate(bytes) => return Ok(vec![1_u8; bytes].len().to_string()),
        // SAFETY: the buffer is valid for its length.
        Deed::Babble => unsafe {
            libc::write(ANSWERS, [0xff_u8; 64].as_ptr().cast(), 64);
        },
        Deed::FallSilent => {
            // SAFETY: it breaks this process's own pipe, as a bug in a library could.
            unsafe { libc::close(ANSWERS) };
            loop {
                std::thread::park();
            }
        }
        Deed::Print => {
            println!("a line that looks like nothing the protocol knows");
            eprintln!("and one on stderr");
            io::stdout().flush()?;
            let mut nothing = String::new();
            io::stdin().read_to_string(&mut nothing)?;
            return Ok(nothing);
        }
        Deed::Signals => {
            // SAFETY: these calls touch no memory.
            let group = unsafe {
                libc::raise(libc::SIGINT);
                libc::raise(libc::SIGTERM);
                libc::getpgrp()
            };
            return Ok((group.unsigned_abs() == own_id).to_string());
        }
        Deed::Threads => {
            let threads: Vec<_> = (0..8_u32)
                .map(|i| std::thread::Builder::new().spawn(move || i))
                .collect::<io::Result<_>>()?;
            let sum: u32 = threads.into_iter().map(|it| it.join().unwrap()).sum();
            return Ok(sum.to_string());
        }
        Deed::EncodeH264 => return encode_h264().map_err(io::Error::other),
        Deed::Read(path) => return fs::read_to_string(path),
        Deed::Write(path, bytes) => fs::write(path, vec![7; bytes])?,
        Deed::Rename(from, to) => fs::rename(from, to)?,
        Deed::Remove(path) => fs::remove_file(path)?,
        Deed::Meet(own, other) => {
            fs::write(own, "")?;
            while !other.exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Deed::Connect(port) => drop(TcpStream::connect(("127.0.0.1", port))?),
        Deed::Run => drop(Command::new("/bin/true").status()?),
        Deed::Exec => {
            // SAFETY: path and arguments are C strings, the list ends in null.
            unsafe { libc::execl(c"/bin/true".as_ptr(), c"true".as_ptr(), std::ptr::null::<libc::c_char>()) };
            return Err(io::Error::last_os_error());
        }
        Deed::SignalParent => {
            // SAFETY: signal 0 only asks whether it may.
            if unsafe { libc::kill(libc::getppid(), 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Deed::Environment => {
            let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
            return Ok(names.collect::<Vec<_>>().join(" "));
        }
        Deed::OpenFiles => {
            // SAFETY: F_GETFD touches no memory.
            let open = (0..1024).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0).count();
            return Ok(open.to_string());
        }
        Deed::DeathSignal => {
            let mut signal: libc::c_int = 0;
            // SAFETY: the call writes one `int`.
            unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
            return Ok(signal.to_string());
        }
        Deed::Status => return fs::read_to_string("/proc/self/status"),
    }
    Ok(String::new())
}

/// Sixteen frames through libx264 with two threads; the number of packets.
fn encode_h264() -> Result<String, ffmpeg_next::Error> {
    let codec = ffmpeg_next::encoder::find_by_name("libx264").ok_or(ffmpeg_next::Error::EncoderNotFound)?;
    let mut encoder = ffmpeg_next::codec::Context::new_with_codec(codec).encoder().video()?;
    encoder.set_width(64);
    encoder.set_height(64);
    encoder.set_format(ffmpeg_next::format::Pixel::YUV420P);
    encoder.set_time_base((1, 25));
    encoder.set_threading(ffmpeg_next::threading::Config::count(2));
    let mut encoder = encoder.open()?;
    let mut frame = ffmpeg_next::frame::Video::new(ffmpeg_next::format::Pixel::YUV420P, 64, 64);
    (0..3).for_each(|plane| frame.data_mut(plane).fill(128));
    let mut packets = 0;
    let mut packet = ffmpeg_next::Packet::empty();
    for pts in 0..16 {
        frame.set_pts(Some(pts));
        encoder.send_frame(&frame)?;
        while encoder.receive_packet(&mut packet).is_ok() {
            packets += 1;
        }
    }
    encoder.send_eof()?;
    while encoder.receive_packet(&mut packet).is_ok() {
        packets += 1;
    }
    Ok(packets.to_string())
}
