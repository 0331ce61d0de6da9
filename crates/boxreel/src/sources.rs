//! Which videos a command line means.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// Endings of files that a folder's listing takes for videos. A file named on the command line may end as it likes.
const ENDINGS: [&str; 26] = [
    "3g2", "3gp", "asf", "avi", "flv", "gif", "m2ts", "m2v", "m4v", "mj2", "mjpeg", "mkv", "mov", "mp4",
    "mpeg", "mpg", "mts", "mxf", "ogg", "ogv", "ts", "vob", "webm", "wmv", "y4m", "h264",
];

/// A video to work on. Equality is what makes an unfinished run be continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds from 1970 to its last change.
    pub modified: u64,
}

/// A source that cannot be used, with the sentence that says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// As it was written on the command line.
    pub source: String,
    /// One sentence.
    pub message: String,
}

/// Resolves files, folders and glob patterns, in the order given, each file once.
#[must_use]
pub fn resolve(sources: &[String]) -> (Vec<SourceFile>, Vec<Unusable>) {
    let (mut files, mut unusable): (Vec<SourceFile>, Vec<Unusable>) = (Vec::new(), Vec::new());
    for source in sources {
        let found = paths(source)
            .and_then(|paths| paths.iter().map(|path| measure(path)).collect::<Result<Vec<_>, _>>());
        match found {
            Ok(found) => {
                for file in found {
                    if !files.iter().any(|known| known.path == file.path) {
                        files.push(file);
                    }
                }
            }
            Err(message) => unusable.push(Unusable { source: source.clone(), message }),
        }
    }
    (files, unusable)
}

fn paths(source: &str) -> Result<Vec<PathBuf>, String> {
    let path = Path::new(source);
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => list(path),
        Ok(_) => Ok(vec![path.to_owned()]),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && source.contains(['*', '?', '[']) => {
            expand(source)
        }
        Err(error) => Err(unreadable(&error)),
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries =
        entries.map_err(|error| format!("The folder cannot be listed ({error}); check its permissions."))?;
    let mut videos: Vec<_> =
        entries.into_iter().map(|entry| entry.path()).filter(|path| is_video(path)).collect();
    videos.sort();
    if videos.is_empty() {
        return Err(
            "The folder holds no video files; name the files themselves if their endings are unusual."
                .to_owned(),
        );
    }
    Ok(videos)
}

fn is_video(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    path.is_file() && ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

fn expand(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let matches = glob::glob(pattern).map_err(|error| format!("The pattern is not valid: {error}."))?;
    let files: Vec<_> = matches.filter_map(Result::ok).filter(|path| path.is_file()).collect();
    if files.is_empty() {
        return Err("No file matches the pattern.".to_owned());
    }
    Ok(files)
}

fn measure(path: &Path) -> Result<SourceFile, String> {
    let measured = fs::canonicalize(path).and_then(|path| {
        // Opening says now, and clearly, what reading would say later.
        let found = fs::File::open(&path)?.metadata()?;
        Ok((path, found))
    });
    let (path, found) = measured.map_err(|error| unreadable(&error))?;
    if path.to_str().is_none() {
        return Err("Its name is not valid UTF-8; rename it.".to_owned());
    }
    if !found.is_file() {
        return Err("This is neither a file nor a folder.".to_owned());
    }
    let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = modified.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0);
    Ok(SourceFile { path, size: found.len(), modified })
}

fn unreadable(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "There is no such file or folder; check the spelling.".to_owned(),
        std::io::ErrorKind::PermissionDenied => "It may not be read; check its permissions.".to_owned(),
        _ => format!("It cannot be read: {error}."),
    }
}

/// A folder name for each file: its stem, numbered where two would be the same.
#[must_use]
pub fn folder_names(files: &[SourceFile]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for file in files {
        let stem = file
            .path
            .file_stem()
            .map_or_else(|| "video".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let mut name = stem.clone();
        let mut number = 2;
        while names.contains(&name) {
            name = format!("{stem}_{number}");
            number += 1;
        }
        names.push(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_globs_and_files_are_resolved_once_each() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.mp4", "a.MKV", "notes.txt"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let root = folder.path().to_str().unwrap().to_owned();
        let (files, unusable) =
            resolve(&[root.clone(), format!("{root}/*.mp4"), format!("{root}/notes.txt")]);
        let names: Vec<_> =
            files.iter().map(|file| file.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.MKV", "b.mp4", "notes.txt"]);
        assert!(unusable.is_empty());
    }

    #[test]
    fn what_is_missing_is_named_and_the_rest_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let video = folder.path().join("a.mp4");
        fs::write(&video, "x").unwrap();
        let (files, unusable) = resolve(&["/nowhere/x.mp4".to_owned(), video.to_str().unwrap().to_owned()]);
        assert_eq!(files.len(), 1);
        assert_eq!(unusable[0].source, "/nowhere/x.mp4");
        assert!(unusable[0].message.contains("no such file"));
    }

    #[test]
    fn equal_stems_get_folders_of_their_own() {
        let file = |path: &str| SourceFile { path: path.into(), size: 0, modified: 0 };
        let names = folder_names(&[file("/a/cat.mp4"), file("/b/cat.mp4"), file("/b/cat_2.mp4")]);
        assert_eq!(names, ["cat", "cat_2", "cat_2_2"]);
    }
}
