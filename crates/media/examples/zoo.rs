//! Makes the zoo, a clip of every kind that people upload: `cargo run -p media --example zoo -- FOLDER`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "the module is the tests'")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

#[allow(dead_code, reason = "some of it is for other tests")]
#[path = "../tests/zoo/bits.rs"]
mod bits;
#[allow(dead_code, reason = "what must come out of a clip matters to the test only")]
#[path = "../tests/zoo/clips.rs"]
mod clips;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: cargo run -p media --example zoo -- FOLDER");
        return ExitCode::from(2);
    };
    let folder = match std::fs::create_dir_all(&folder).and_then(|()| folder.canonicalize()) {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("{} cannot be created: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    };
    let (zoo, next) = (clips::zoo(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(clip) = zoo.get(next.fetch_add(1, Ordering::Relaxed)) {
                    println!("{}", clip.make(&folder).display());
                }
            });
        }
    });
    ExitCode::SUCCESS
}
