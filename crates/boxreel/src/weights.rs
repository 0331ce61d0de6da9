//! Which weights to use when the command line names none.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

const FILE: &str = "ssd300-v0.safetensors";

/// The weights that came with Boxreel: beside the program, in an installation's `share/boxreel/models`, in the
/// present folder's `models`, or in the tree the program was built in.
///
/// # Errors
/// When they are in none of these places; the sentence names them.
pub fn default_path() -> Result<PathBuf> {
    let mut places = Vec::new();
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        places.push(folder.join("models"));
        places.push(folder.join("../share/boxreel/models"));
    }
    places.push(PathBuf::from("models"));
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models"));
    match places.iter().map(|place| place.join(FILE)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "The weights ({FILE}) are in none of: {}. Name them with --model.",
            places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
        ),
    }
}
