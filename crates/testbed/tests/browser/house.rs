//! `boxreel serve` as a process, and clips for it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use testbed::cluster::{ffmpeg, program};
use testbed::{Janitor, removed_in_the_end, spawn_kept};

/// `boxreel serve` on a free port and a folder of its own; killed when dropped.
pub struct House {
    /// Where it is.
    pub url: String,
    child: Child,
    folder: TempDir,
    _janitor: Janitor,
}

impl House {
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("boxreel-house-").tempdir().unwrap();
        let janitor = removed_in_the_end(folder.path());
        let mut command = Command::new(program("boxreel"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BOXREEL_") {
                command.env_remove(name);
            }
        }
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--disk-reserve", "1MB", "--data-dir", "data"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = spawn_kept(command).unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let url = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let url = line.strip_prefix("Boxreel is at ").and_then(|rest| rest.split_once("/ "));
            let url = url.map(|(url, _)| url.to_owned());
            said.push(line);
            url
        });
        let url = url.unwrap_or_else(|| panic!("boxreel serve does not start: {}", said.join("\n")));
        // Its log must find a reader, or it would wait for one.
        std::thread::spawn(move || lines.for_each(drop));
        Self { url, child, folder, _janitor: janitor }
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A clip of `frames` frames, 25 a second, with a tone, in which the network that ships finds objects: a fractal that
/// it takes for kites and people.
pub fn clip(folder: &Path, name: &str, frames: u32) -> PathBuf {
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i mandelbrot=size=320x240:rate=25 -f lavfi -i sine=frequency=220 \
             -c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p -c:a aac -shortest -frames:v {frames} \
             -t {} {name}",
            f64::from(frames) / 25.0
        ),
    )
    .unwrap();
    folder.join(name)
}
