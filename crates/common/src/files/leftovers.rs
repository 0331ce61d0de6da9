//! What lies on the volume, for whoever clears up.

use std::fs::{self, DirEntry};
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use super::{Draft, JobFolder, PARTIAL, Volume, is_draft};
use crate::job::JobId;

/// A file or folder that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Where it lies.
    pub path: PathBuf,
    /// When it was last written, by the volume's clock.
    pub modified: SystemTime,
}

/// What a file or folder is, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A job's folder.
    Job(JobId),
    /// A whole upload.
    Upload(JobId),
    /// An upload that comes in pieces, or the leftover of one.
    Partial(JobId),
    /// An upload being written, or the leftover of one.
    UploadDraft,
    /// Another file being written, or the leftover of one.
    Draft,
    /// A file that a document may name: its path below the job's folder.
    Intermediate(String),
}

impl Volume {
    /// The present moment by the clock that stamps files: that of a file server may differ from ours.
    ///
    /// # Errors
    /// When the volume cannot be written.
    pub fn now(&self) -> io::Result<SystemTime> {
        let draft = Draft::new(&self.root.join("now"));
        draft.create()?.metadata()?.modified()
    }

    /// All that lies directly on the volume and among the uploads; what is not Boxreel's is left out.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut found = list(&self.root, |name, folder| match name.parse() {
            Ok(id) if folder => Some(Kind::Job(id)),
            _ => (is_draft(name) && !folder).then_some(Kind::Draft),
        })?;
        found.extend(list(&self.uploads(), |name, folder| match name.parse() {
            Ok(id) if !folder => Some(Kind::Upload(id)),
            _ if folder => None,
            _ => match name.strip_suffix(PARTIAL).and_then(|id| id.parse().ok()) {
                Some(id) => Some(Kind::Partial(id)),
                None => is_draft(name).then_some(Kind::UploadDraft),
            },
        })?);
        Ok(found)
    }
}

impl JobFolder {
    /// Folders whose files documents name.
    const NAMED: [&'static str; 4] = ["index", "pack", "detections", "render"];

    /// The files that documents name, or did, or will; and drafts of such.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn intermediates(&self) -> io::Result<Vec<Entry>> {
        let mut found = Vec::new();
        for sub in Self::NAMED {
            found.extend(list(&self.path.join(sub), |name, folder| {
                (!folder).then(|| Kind::Intermediate(format!("{sub}/{name}")))
            })?);
        }
        Ok(found)
    }

    /// Drafts among the files that no document names. Looks at every file there is: not for every minute.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn drafts(&self) -> io::Result<Vec<Entry>> {
        let mut found = Vec::new();
        for sub in Self::SUBFOLDERS.iter().filter(|sub| !Self::NAMED.contains(sub)) {
            found.extend(list(&self.path.join(sub), |name, folder| {
                (is_draft(name) && !folder).then_some(Kind::Draft)
            })?);
        }
        Ok(found)
    }
}

/// The entries of a folder that `kind` wants; none when there is no such folder.
fn list(folder: &std::path::Path, kind: impl Fn(&str, bool) -> Option<Kind>) -> io::Result<Vec<Entry>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry: DirEntry = entry?;
        let name = entry.file_name();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let Some(kind) = name.to_str().and_then(|name| kind(name, is_folder)) else { continue };
        // It may be gone by now.
        let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified()) else { continue };
        found.push(Entry { kind, path: entry.path(), modified });
    }
    Ok(found)
}
