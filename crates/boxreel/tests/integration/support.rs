//! Clips to work on, the program to run, and looks at what came out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program, started in `folder`.
pub fn boxreel(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_boxreel"));
    command.current_dir(folder).env_remove("BOXREEL_MODEL").env_remove("BOXREEL_LOG").stdin(Stdio::null());
    command
}

/// Runs FFmpeg's command line quietly; it must succeed.
pub fn ffmpeg(folder: &Path, arguments: &str) {
    let output = Command::new("ffmpeg")
        .current_dir(folder)
        .args(["-v", "error", "-nostdin", "-y"])
        .args(arguments.split_whitespace())
        .output()
        .expect("the ffmpeg command is installed by scripts/setup.sh");
    assert!(output.status.success(), "ffmpeg {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A moving test picture of `frames` frames at 25 a second, with a tone.
pub fn clip(folder: &Path, name: &str, frames: u32) -> PathBuf {
    let seconds = f64::from(frames) / 25.0;
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i testsrc2=size=320x240:rate=25:duration={seconds} -f lavfi -i sine=frequency=440:duration={seconds} \
             -c:v libx264 -g 50 -bf 2 -pix_fmt yuv420p -c:a aac -frames:v {frames} {name}"
        ),
    );
    folder.join(name)
}

/// What ffprobe says of one entry of the first stream of a kind (`v` or `a`).
pub fn probe(file: &Path, stream: char, entry: &str) -> String {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-count_packets", "-select_streams", &format!("{stream}:0"), "-show_entries"])
        .arg(format!("stream={entry}"))
        .args(["-of", "default=noprint_wrappers=1:nokey=1"])
        .arg(file)
        .output()
        .expect("the ffprobe command is installed by scripts/setup.sh");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A digest of every decoded frame of a video.
pub fn pixels(file: &Path) -> String {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-xerror", "-nostdin", "-i"])
        .arg(file)
        .args(["-map", "0:v", "-f", "md5", "-"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON summary a run printed.
pub fn summary(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("no JSON ({error}); standard error: {}", text(&output.stderr)))
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every file and folder below `folder`, relative and sorted.
pub fn tree(folder: &Path) -> Vec<String> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            if path.is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}
