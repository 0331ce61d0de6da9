//! `boxreel serve` as a process.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::cluster::{program, without_settings};
use crate::kept::{Janitor, removed_in_the_end, spawn_kept};

/// `boxreel serve` on a free port and a folder of its own; killed when dropped.
pub struct House {
    /// Where it is.
    pub url: String,
    child: Child,
    folder: TempDir,
    _janitor: Janitor,
}

impl House {
    /// Starts it, and waits until it says where it is.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("boxreel-house-").tempdir().unwrap();
        let janitor = removed_in_the_end(folder.path());
        let mut command = Command::new(program("boxreel"));
        without_settings(&mut command)
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

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The folder it was started in, for the test's own files; its `data` holds what it stores.
    #[must_use]
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
