//! The names of files on the volume, and the one way to put a file there: write aside, sync, rename.
//!
//! This is the only place that spells a path on the volume. A user's file name never becomes one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::job::JobId;
use crate::segment::Token;

mod leftovers;

pub use leftovers::{Entry, Kind};

/// What the names of uploads end with that come in pieces.
const PARTIAL: &str = ".part";

/// A file that a document names: only such files are ever read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Path below the job's folder.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// xxh3-64 of the content. (Signed, because BSON and SQLite know no unsigned 64-bit number.)
    pub checksum: i64,
}

/// Takes the lock of a folder that one process at a time may use; it lasts until the file is dropped or the process
/// ends, however it ends. `None` while another process has it.
///
/// # Errors
/// When the folder cannot be written, or its file system has no locks.
pub fn lock(folder: &Path) -> io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The shared volume.
#[derive(Debug, Clone)]
pub struct Volume {
    root: PathBuf,
}

impl Volume {
    /// The volume mounted at `root`.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder all jobs live under.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of uploads.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        self.root.join("src")
    }

    /// Where uploads lie whole.
    #[must_use]
    pub fn upload(&self, job: JobId) -> PathBuf {
        self.uploads().join(job.to_string())
    }

    /// Where an upload gathers that comes in pieces.
    #[must_use]
    pub fn partial(&self, upload: JobId) -> PathBuf {
        self.uploads().join(format!("{upload}{PARTIAL}"))
    }

    /// Begins an upload that comes in pieces, with no byte yet.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn begin_partial(&self, upload: JobId) -> io::Result<()> {
        fs::create_dir_all(self.uploads())?;
        File::create(self.partial(upload))?.sync_all()?;
        sync_folder(&self.uploads())
    }

    /// Puts an upload that came in pieces, and is synced, in its place, and makes its job's folder. Repeating it is
    /// fine.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when it has not `length` bytes; else what reading or renaming said.
    pub fn complete_partial(&self, upload: JobId, length: u64) -> io::Result<PathBuf> {
        let path = self.upload(upload);
        self.job(upload).create()?;
        let aside = self.partial(upload);
        let found = match fs::metadata(&aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::metadata(&path)?.len(),
            found => found?.len(),
        };
        if found != length {
            let what = format!("upload {upload} has {found} bytes instead of {length}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        match fs::rename(&aside, &path) {
            // An earlier call, perhaps of another process, came so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => {}
            renamed => renamed?,
        }
        sync_folder(&self.uploads())?;
        Ok(path)
    }

    /// The folder of one job.
    #[must_use]
    pub fn job(&self, job: JobId) -> JobFolder {
        JobFolder { path: self.root.join(job.to_string()), job }
    }
}

/// One job's folder and the names in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobFolder {
    path: PathBuf,
    job: JobId,
}

/// The two encodings that render makes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// H.264, for the MP4.
    H264,
    /// MPEG-4 part 2, for the AVI.
    Mpeg4,
}

impl JobFolder {
    const SUBFOLDERS: [&'static str; 8] =
        ["index", "pack", "detections", "render", "src_frame", "txts", "tar_frame", "target"];

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder and all it holds; repeating it is fine. Only what creates jobs calls this.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn create(&self) -> io::Result<()> {
        Self::SUBFOLDERS.iter().try_for_each(|sub| fs::create_dir_all(self.path.join(sub)))
    }

    /// The frame index.
    #[must_use]
    pub fn index(&self, token: &Token) -> PathBuf {
        self.path.join(format!("index/frames.{token}"))
    }

    /// The stand-in for a source that can't be cut exactly.
    #[must_use]
    pub fn mezzanine(&self, token: &Token) -> PathBuf {
        self.path.join(format!("index/mezzanine.{token}.mkv"))
    }

    /// A segment's pack.
    #[must_use]
    pub fn pack(&self, segment: u32, token: &Token) -> PathBuf {
        self.path.join(format!("pack/{segment}.{token}"))
    }

    /// A segment's detections.
    #[must_use]
    pub fn detections(&self, segment: u32, token: &Token) -> PathBuf {
        self.path.join(format!("detections/{segment}.{token}"))
    }

    /// A segment's drawn frames, encoded.
    #[must_use]
    pub fn encoded(&self, segment: u32, encoding: Encoding, token: &Token) -> PathBuf {
        let ending = match encoding {
            Encoding::H264 => "h264",
            Encoding::Mpeg4 => "mpeg4",
        };
        self.path.join(format!("render/{segment}.{token}.{ending}"))
    }

    /// Picture `n` as it came.
    #[must_use]
    pub fn src_frame(&self, n: u32) -> PathBuf {
        self.path.join(format!("src_frame/frame_{n}.jpg"))
    }

    /// The text of picture `n`'s detections.
    #[must_use]
    pub fn txt(&self, n: u32) -> PathBuf {
        self.path.join(format!("txts/infer{n}.txt"))
    }

    /// Picture `n` with its boxes.
    #[must_use]
    pub fn tar_frame(&self, n: u32) -> PathBuf {
        self.path.join(format!("tar_frame/tar_{n}.jpg"))
    }

    /// The annotated MP4.
    #[must_use]
    pub fn target_mp4(&self) -> PathBuf {
        self.path.join(format!("target/target_{}.mp4", self.job))
    }

    /// The annotated AVI.
    #[must_use]
    pub fn target_avi(&self) -> PathBuf {
        self.path.join(format!("target/target_{}.avi", self.job))
    }

    /// All detections, COCO.
    #[must_use]
    pub fn detections_json(&self) -> PathBuf {
        self.path.join("target/detections.json")
    }

    /// All detections, a table.
    #[must_use]
    pub fn detections_csv(&self) -> PathBuf {
        self.path.join("target/detections.csv")
    }

    /// One annotated picture that stands for the video.
    #[must_use]
    pub fn poster(&self) -> PathBuf {
        self.path.join("target/poster.jpg")
    }

    /// The folder of pictures as they came, of texts, of pictures with boxes; for listing and moving.
    #[must_use]
    pub fn subfolder(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where results gather before they leave for a folder of the user's.
    #[must_use]
    pub fn result(&self) -> PathBuf {
        self.path.join("result")
    }

    /// The path of a file that a document names.
    #[must_use]
    pub fn named(&self, record: &FileRecord) -> PathBuf {
        self.path.join(&record.name)
    }

    /// Checks that a named file is there, whole and unchanged.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when it is missing, [`io::ErrorKind::InvalidData`] when size or checksum
    /// differ; else what reading said.
    pub fn verify(&self, record: &FileRecord) -> io::Result<PathBuf> {
        let path = self.named(record);
        let found = self.record(&path)?;
        if found == *record {
            Ok(path)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is not what was published", record.name),
            ))
        }
    }

    /// Measures the file at `path`, which must lie in this folder.
    ///
    /// # Errors
    /// When the file cannot be read, or lies elsewhere.
    pub fn record(&self, path: &Path) -> io::Result<FileRecord> {
        let name = path.strip_prefix(&self.path).ok().and_then(Path::to_str).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the file is not in the job's folder")
        })?;
        let mut file = File::open(path)?;
        let mut hash = Xxh3::new();
        let mut buffer = vec![0; 1 << 20];
        let mut size = 0;
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            size += n as u64;
        }
        Ok(FileRecord { name: name.to_owned(), size, checksum: hash.digest().cast_signed() })
    }
}

/// A file being written aside. Dropped without [`Draft::publish`], it is removed.
#[derive(Debug)]
pub struct Draft {
    aside: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Draft {
    /// Starts a file that will be at `path`: the draft has a name of its own in the same folder.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!(".{name}.{:016x}.tmp", rand::random::<u64>()));
        Self { aside, path: path.to_owned(), published: false }
    }

    /// Where to write.
    #[must_use]
    pub fn aside(&self) -> &Path {
        &self.aside
    }

    /// Creates the file to write.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(&self.aside)
    }

    /// Syncs what was written and puts it in its place, visible from now on and whole.
    ///
    /// # Errors
    /// When syncing fails (NFS reports a full disk there) or the file cannot be renamed.
    pub fn publish(mut self) -> io::Result<PathBuf> {
        self.put()?;
        if let Some(folder) = self.path.parent() {
            sync_folder(folder)?;
        }
        Ok(self.path.clone())
    }

    /// Publishes many files of one folder, syncing the folder once.
    ///
    /// # Errors
    /// As [`Draft::publish`]; drafts from the failing one on are removed.
    pub fn publish_all(drafts: Vec<Self>) -> io::Result<()> {
        let folder = drafts.first().and_then(|draft| draft.path.parent()).map(Path::to_owned);
        for mut draft in drafts {
            draft.put()?;
        }
        folder.map_or(Ok(()), |folder| sync_folder(&folder))
    }

    fn put(&mut self) -> io::Result<()> {
        File::open(&self.aside)?.sync_all()?;
        fs::rename(&self.aside, &self.path)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.aside);
        }
    }
}

/// Whether a file name is that of a draft (the leftover of a process that was killed, once it is old).
#[must_use]
pub fn is_draft(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Makes renames in `folder` durable.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// One sentence for the user on something that could not be read or written: `doing` completes "could not …".
#[must_use]
pub fn trouble(doing: &str, error: &io::Error) -> String {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => {
            format!("The disk is full: could not {doing}. Free some space and try again.")
        }
        Kind::FileTooLarge => format!(
            "Could not {doing}: the file grew beyond the largest allowed here. Raise the file size limit, or split \
             the video."
        ),
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => {
            format!("No permission to {doing}. Check who owns the folder and whether it is read-only.")
        }
        _ => format!("Could not {doing}: {error}. Check the disk and try again."),
    }
}

/// Publishes `bytes` as the file at `path`.
///
/// # Errors
/// As [`Draft::create`] and [`Draft::publish`].
pub fn publish_bytes(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    use std::io::Write;
    let draft = Draft::new(path);
    draft.create()?.write_all(bytes)?;
    draft.publish()
}
