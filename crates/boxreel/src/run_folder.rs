//! The folder a run writes into, and the unfinished run that may be waiting there.
//!
//! While a run is unfinished, its folder holds `.boxreel/`: the store, the volume with everything unfinished, and
//! `run.json`, which says what the run is. The same command finds it by that and continues.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use common::files::{lock, publish_bytes};
use common::job::{JobId, Settings};
use serde::{Deserialize, Serialize};

use crate::sources::SourceFile;

const STATE: &str = ".boxreel";

/// What a run is: equal commands over unchanged sources make equal runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The settings all its jobs share.
    pub settings: Settings,
    /// Its videos.
    pub videos: Vec<Video>,
}

/// One video of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Video {
    /// The file.
    pub source: SourceFile,
    /// The name of its result folder.
    pub folder: String,
    /// Its job.
    pub job: JobId,
}

impl Run {
    fn is_same_as(&self, other: &Self) -> bool {
        let videos =
            |run: &Self| run.videos.iter().map(|v| (v.source.clone(), v.folder.clone())).collect::<Vec<_>>();
        self.settings == other.settings && videos(self) == videos(other)
    }
}

/// A run's folder, held by this process until dropped.
pub struct RunFolder {
    /// Where results appear.
    pub path: PathBuf,
    /// What runs: with the job ids of the unfinished run when one is continued.
    pub run: Run,
    /// Whether an unfinished run is continued.
    pub resumed: bool,
    // What this run made, the innermost first: all of it goes again if nothing comes of the run.
    made: Vec<PathBuf>,
    // Held, not read: the lock goes with the process, however that ends.
    _lock: File,
}

impl RunFolder {
    /// Takes the folder for `run`: that of the same run left unfinished, else a new one at `base` (numbered when
    /// it exists, unless `exist_ok`).
    ///
    /// # Errors
    /// When the folder cannot be made, or another process is at work in it.
    pub fn take(base: &Path, exist_ok: bool, run: Run) -> Result<Self> {
        if exist_ok {
            let made = missing(base);
            fs::create_dir_all(base).map_err(|error| cannot_make(base, &error))?;
            return match Self::open(base, &run)? {
                Opened::Mine(folder) => Ok(folder),
                Opened::Busy => bail!(
                    "Another boxreel is at work in {}; wait for it, or name another --out.",
                    base.display()
                ),
                Opened::Other => Self::begin(base, made, run),
            };
        }
        // The newest candidate first: that is where a run that was just interrupted lies.
        let mut number = 1;
        while numbered(base, number + 1).exists() {
            number += 1;
        }
        for candidate in (1..=number).rev().map(|n| numbered(base, n)) {
            if candidate.join(STATE).exists()
                && let Opened::Mine(folder) = Self::open(&candidate, &run)?
            {
                return Ok(folder);
            }
        }
        let mut made = Vec::new();
        if let Some(parent) = base.parent() {
            made = missing(parent);
            fs::create_dir_all(parent).map_err(|error| cannot_make(parent, &error))?;
        }
        for number in 1.. {
            let path = numbered(base, number);
            match fs::create_dir(&path) {
                Ok(()) => {
                    made.insert(0, path.clone());
                    return Self::begin(&path, made, run);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    remove_empty(&made);
                    return Err(cannot_make(&path, &error));
                }
            }
        }
        bail!("No free folder name is left beside {}.", base.display())
    }

    fn open(path: &Path, run: &Run) -> Result<Opened> {
        let state = path.join(STATE);
        let Ok(text) = fs::read(state.join("run.json")) else { return Ok(Opened::Other) };
        let Some(lock) = lock(&state).with_context(|| format!("Cannot lock {}", state.display()))? else {
            return Ok(Opened::Busy);
        };
        match serde_json::from_slice::<Run>(&text) {
            Ok(unfinished) if unfinished.is_same_as(run) => {
                let (path, made) = (path.to_owned(), vec![path.to_owned()]);
                Ok(Opened::Mine(Self { path, run: unfinished, resumed: true, made, _lock: lock }))
            }
            _ => Ok(Opened::Other),
        }
    }

    fn begin(path: &Path, made: Vec<PathBuf>, run: Run) -> Result<Self> {
        let state = path.join(STATE);
        let begun = (|| {
            match fs::remove_dir_all(&state) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::create_dir(&state)?,
            }
            let lock = lock(&state)?;
            publish_bytes(&state.join("run.json"), &serde_json::to_vec_pretty(&run)?)?;
            lock.ok_or_else(|| io::Error::other("another boxreel is at work there"))
        })();
        match begun {
            Ok(lock) => Ok(Self { path: path.to_owned(), run, resumed: false, made, _lock: lock }),
            Err(error) => {
                let _ = fs::remove_dir_all(&state);
                remove_empty(&made);
                Err(anyhow!(
                    "Cannot start a run in {} ({error}); check who may write there and whether the disk is full, or \
                     name another folder with --out.",
                    path.display()
                ))
            }
        }
    }

    /// Where everything unfinished lives.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// Removes what belongs to the unfinished run, and the folders the run made if they then hold nothing.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn finish(self) -> io::Result<()> {
        fs::remove_dir_all(self.state())?;
        remove_empty(&self.made);
        Ok(())
    }
}

enum Opened {
    Mine(RunFolder),
    Busy,
    Other,
}

fn numbered(base: &Path, number: u32) -> PathBuf {
    if number == 1 {
        return base.to_owned();
    }
    let mut name = base.file_name().unwrap_or_default().to_owned();
    name.push(number.to_string());
    base.with_file_name(name)
}

/// The folders of `path`, itself first, that do not exist yet.
fn missing(path: &Path) -> Vec<PathBuf> {
    let named = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty());
    named.take_while(|folder| !folder.exists()).map(Path::to_owned).collect()
}

/// Removes folders, the innermost first, as far as they are empty.
fn remove_empty(folders: &[PathBuf]) {
    // Fails at the first that holds something, such as results, which is as it should be.
    let _ = folders.iter().try_for_each(fs::remove_dir);
}

fn cannot_make(path: &Path, error: &io::Error) -> anyhow::Error {
    anyhow!(
        "Cannot make the folder {} ({error}); check who may write there, or name another folder with --out.",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use common::clock::Stamp;
    use common::job::{ModelKey, Precision};

    use super::*;

    fn run(conf: f32) -> Run {
        let settings = Settings {
            conf,
            iou: 0.5,
            max_det: 200,
            classes: Vec::new(),
            every: 1,
            keep_frames: false,
            save_txt: false,
            mp4: true,
            avi: true,
            names: vec!["cat".to_owned()],
            model: ModelKey { digest: "0".repeat(64), precision: Precision::Fp32 },
        };
        let source = SourceFile { path: "/videos/a.mp4".into(), size: 1, modified: 2 };
        Run { settings, videos: vec![Video { source, folder: "a".to_owned(), job: JobId::new(Stamp(0)) }] }
    }

    #[test]
    fn only_the_same_unfinished_run_is_continued() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("predict");
        let first = RunFolder::take(&base, false, run(0.3)).unwrap();
        let job = first.run.videos[0].job;
        // While it is at work, the same command makes a run of its own.
        let beside = RunFolder::take(&base, false, run(0.3)).unwrap();
        assert_eq!((first.path.clone(), beside.path.clone()), (base.clone(), root.path().join("predict2")));
        beside.finish().unwrap();
        drop(first);

        let other = RunFolder::take(&base, false, run(0.4)).unwrap();
        assert!(!other.resumed && other.path != base);
        let same = RunFolder::take(&base, false, run(0.3)).unwrap();
        assert!(same.resumed && same.path == base);
        assert_eq!(same.run.videos[0].job, job, "its jobs are found again");
    }

    #[test]
    fn a_run_that_comes_to_nothing_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("kept");
        fs::create_dir(&kept).unwrap();
        RunFolder::take(&kept.join("runs/detect/predict"), false, run(0.3)).unwrap().finish().unwrap();
        RunFolder::take(&kept.join("new/folder"), true, run(0.3)).unwrap().finish().unwrap();
        RunFolder::take(&kept, true, run(0.3)).unwrap().finish().unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "what was there stays");
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
        fs::write(kept.join("file"), "").unwrap();
        let error = RunFolder::take(&kept.join("file/predict"), false, run(0.3)).err().unwrap().to_string();
        assert!(error.contains("--out") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn an_existing_folder_is_used_when_asked_and_not_shared() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("notes.txt"), "mine").unwrap();
        let taken = RunFolder::take(root.path(), true, run(0.3)).unwrap();
        let error = RunFolder::take(root.path(), true, run(0.3)).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("Another boxreel")));
        taken.finish().unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "what was there stays");
    }
}
