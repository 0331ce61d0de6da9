//! Putting a finished job's files where the user looks, all at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use common::files::{JobFolder, is_draft, sync_folder};

/// What a result folder holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// The annotated MP4.
    pub mp4: Option<PathBuf>,
    /// The annotated AVI.
    pub avi: Option<PathBuf>,
    /// The folder.
    pub folder: Option<PathBuf>,
}

/// Moves what `made` holds to the folder `results`, which appears whole or not at all. Repeating it after a crash
/// finishes the move.
///
/// # Errors
/// When a file cannot be moved.
pub fn publish(made: &JobFolder, results: &Path, stem: &str, state: &Path) -> io::Result<Exported> {
    let moves: Vec<_> = [
        (made.target_mp4(), format!("{stem}.mp4")),
        (made.target_avi(), format!("{stem}.avi")),
        (made.detections_json(), "detections.json".to_owned()),
        (made.detections_csv(), "detections.csv".to_owned()),
        (made.subfolder("txts"), "txts".to_owned()),
        (made.subfolder("src_frame"), "src_frame".to_owned()),
        (made.subfolder("tar_frame"), "tar_frame".to_owned()),
    ]
    .into_iter()
    .filter(|(from, _)| is_result(from))
    .collect();
    let staged = made.result();
    // After a crash between the last rename and the removal below, there is nothing left to move.
    if !moves.is_empty() || staged.exists() {
        fs::create_dir_all(&staged)?;
        for (from, name) in moves {
            fs::rename(from, staged.join(name))?;
        }
        if results.exists() {
            let replaced = state.join("replaced");
            fs::create_dir_all(&replaced)?;
            fs::rename(results, replaced.join(made.path().file_name().unwrap_or_default()))?;
        }
        fs::rename(&staged, results)?;
        if let Some(parent) = results.parent() {
            sync_folder(parent)?;
        }
    }
    discard(made);
    let file = |name: String| Some(results.join(name)).filter(|path| path.is_file());
    Ok(Exported {
        mp4: file(format!("{stem}.mp4")),
        avi: file(format!("{stem}.avi")),
        folder: Some(results.to_owned()),
    })
}

/// A folder that a flag left empty is not a result.
fn is_result(path: &Path) -> bool {
    path.is_file() || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}

/// Removes what is left of an ended job's folder.
pub fn discard(made: &JobFolder) {
    if let Err(error) = fs::remove_dir_all(made.path())
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "a job's files could not be removed");
    }
}

/// Removes drafts that killed processes left anywhere below `folder`.
pub fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sweep(&path);
        } else if is_draft(&entry.file_name().to_string_lossy()) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use common::clock::Stamp;
    use common::files::Volume;
    use common::job::JobId;

    use super::*;

    fn finished_job(root: &Path) -> JobFolder {
        let made = Volume::new(root.join("state/volume")).job(JobId::new(Stamp(0)));
        made.create().unwrap();
        fs::write(made.target_mp4(), "video").unwrap();
        fs::write(made.detections_json(), "{}").unwrap();
        made
    }

    #[test]
    fn results_appear_whole_under_the_names_a_user_expects() {
        let root = tempfile::tempdir().unwrap();
        let made = finished_job(root.path());
        let exported = publish(&made, &root.path().join("cat"), "cat", &root.path().join("state")).unwrap();
        assert_eq!(exported.mp4, Some(root.path().join("cat/cat.mp4")));
        assert_eq!(exported.avi, None);
        assert!(root.path().join("cat/detections.json").is_file());
        assert!(!root.path().join("cat/txts").exists(), "an empty folder is no result");
        assert!(!made.path().exists());
    }

    #[test]
    fn a_crash_at_any_step_is_made_good_by_repeating() {
        for step in ["before", "staged", "published"] {
            let root = tempfile::tempdir().unwrap();
            let (results, state) = (root.path().join("cat"), root.path().join("state"));
            let made = finished_job(root.path());
            // The state of affairs that a crash at this step leaves.
            if step != "before" {
                fs::create_dir_all(made.result()).unwrap();
                fs::rename(made.target_mp4(), made.result().join("cat.mp4")).unwrap();
            }
            if step == "published" {
                fs::rename(made.detections_json(), made.result().join("detections.json")).unwrap();
                fs::rename(made.result(), &results).unwrap();
            }
            publish(&made, &results, "cat", &state).unwrap();
            publish(&made, &results, "cat", &state).unwrap();
            assert!(results.join("cat.mp4").is_file(), "crashed {step}");
            assert!(results.join("detections.json").is_file(), "crashed {step}");
        }
    }
}
