//! Weights files: safetensors, checked against the architecture before a single tensor reaches libtorch.
//!
//! Layout of a safetensors file: length of the header (u64, little-endian), the header (JSON: name →
//! dtype, shape, byte range; `__metadata__` → strings), then the bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use common::labels::COCO;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::ssd300;

/// Why a model cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file could not be read.
    #[error("the model {} can't be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not safetensors, or is damaged.
    #[error(
        "{} is no usable weights file: {reason}; give a .safetensors file (scripts/convert_checkpoint.py \
         makes one from a PyTorch checkpoint)", path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tensors are not those of SSD300-ResNet50.
    #[error("{} does not fit SSD300-ResNet50: {reason}", path.display())]
    Misfit {
        /// The file.
        path: PathBuf,
        /// Every tensor that is missing, has another shape or is unknown.
        reason: String,
    },
    /// The device can't be used.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// The network could not be set up.
    #[error("the network could not be set up: {0}")]
    Network(#[from] ssd300::NetworkError),
}

/// The weights that came with Boxreel are not where they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "The weights ({FILE}) are in none of: {}. Name them with --model or BOXREEL_MODEL.",
    .0.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub struct NoWeights(pub Vec<PathBuf>);

const FILE: &str = "ssd300-v0.safetensors";

/// The weights that came with Boxreel: beside the program, in an installation's `share/boxreel/models`, in the
/// present folder's `models`, or in the tree the program was built in.
///
/// # Errors
/// When they are in none of these places; the sentence names them.
pub fn default_path() -> Result<PathBuf, NoWeights> {
    let mut places = Vec::new();
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        places.push(folder.join("models"));
        places.push(folder.join("../share/boxreel/models"));
    }
    places.push(PathBuf::from("models"));
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models"));
    match places.iter().map(|place| place.join(FILE)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Err(NoWeights(places)),
    }
}

/// A weights file that was read once and found to fit: its identity, not its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Where it lies.
    pub path: PathBuf,
    /// SHA-256 of the file, hexadecimal.
    pub digest: String,
    /// Names of the classes in the order of the outputs, without background.
    pub names: Vec<String>,
}

impl ModelFile {
    /// Reads and checks the weights at `path`. Touches no device.
    ///
    /// # Errors
    /// When the file can't be read, is no safetensors, or holds other tensors than the architecture's.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Ok(read(path)?.0)
    }
}

/// One tensor in memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f32>,
}

/// A state dict that holds exactly the architecture's tensors in the right shapes.
#[derive(Debug)]
pub struct StateDict {
    tensors: HashMap<String, Array>,
    classes: usize,
}

impl StateDict {
    /// Reads and checks the weights at `path`.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        Ok(read(path)?.1)
    }

    /// Number of classes, background included.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// A tensor the architecture has. The dict was validated, so only a slip in this crate ends in the error.
    pub(crate) fn get(&self, name: &str) -> Result<&Array, ssd300::NetworkError> {
        self.tensors
            .get(name)
            .ok_or_else(|| ssd300::NetworkError::Torch(format!("the tensor {name} was not validated")))
    }
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// Reads the file: its identity and its tensors, checked against the architecture.
pub(crate) fn read(path: &Path) -> Result<(ModelFile, StateDict), ModelError> {
    let bytes = fs::read(path).map_err(|source| ModelError::Unreadable { path: path.to_owned(), source })?;
    let malformed = |reason: String| ModelError::Malformed { path: path.to_owned(), reason };
    let (metadata, entries, data) = parse(&bytes).map_err(malformed)?;
    let (classes, names) = classes(&metadata, &entries).map_err(malformed)?;
    if let Some(reason) = misfit(&entries, classes) {
        return Err(ModelError::Misfit { path: path.to_owned(), reason });
    }
    let mut tensors = HashMap::with_capacity(entries.len());
    for (name, entry) in entries.into_iter().filter(|(name, _)| !ignored(name)) {
        let values = decode(&entry, data).map_err(|reason| malformed(format!("{name} {reason}")))?;
        tensors.insert(name, Array { shape: entry.shape, data: values });
    }
    let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((ModelFile { path: path.to_owned(), digest, names }, StateDict { tensors, classes }))
}

type Parsed<'a> = (HashMap<String, String>, BTreeMap<String, Entry>, &'a [u8]);

fn parse(bytes: &[u8]) -> Result<Parsed<'_>, String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("it is shorter than a safetensors header")?;
    let header = usize::try_from(u64::from_le_bytes(*length))
        .ok()
        .and_then(|length| rest.split_at_checked(length))
        .ok_or("it is not safetensors, or is cut short")?;
    let (header, data) = header;
    let mut map: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|_| "it is not safetensors (its header is not JSON)")?;
    let metadata = match map.remove("__metadata__") {
        Some(value) => serde_json::from_value(value).map_err(|_| "its metadata are not strings")?,
        None => HashMap::new(),
    };
    let mut entries = BTreeMap::new();
    for (name, value) in map {
        let entry: Entry = serde_json::from_value(value)
            .map_err(|_| format!("its header describes {name} in a way safetensors does not"))?;
        let [start, end] = entry.data_offsets;
        if start > end || end > data.len() {
            return Err(format!("it is cut short: {name} lies beyond its end"));
        }
        entries.insert(name, entry);
    }
    Ok((metadata, entries, data))
}

/// How many outputs there are, and what they are called.
fn classes(
    metadata: &HashMap<String, String>,
    entries: &BTreeMap<String, Entry>,
) -> Result<(usize, Vec<String>), String> {
    let coco = || COCO.iter().map(|(_, name)| (*name).to_owned()).collect::<Vec<_>>();
    let names: Option<Vec<String>> = match metadata.get("names") {
        Some(text) => {
            Some(serde_json::from_str(text).map_err(|_| "its `names` are not a JSON list of strings")?)
        }
        None => None,
    };
    let stated = match metadata.get("classes") {
        Some(text) => Some(text.parse::<usize>().map_err(|_| "its `classes` is no number")?),
        None => None,
    };
    // The file may say nothing: the width of the first conf head tells then.
    let measured = entries
        .get("conf.0.bias")
        .and_then(|entry| entry.shape.first())
        .map(|width| width / ssd300::BOXES_PER_CELL[0]);
    let classes =
        stated.or_else(|| names.as_ref().map(|names| names.len() + 1)).or(measured).unwrap_or(COCO.len() + 1);
    // A class index travels as 16 bits, and a model without classes detects nothing.
    if !(2..=usize::from(u16::MAX)).contains(&classes) {
        return Err(format!("it claims {classes} classes with background, and needs 2 to 65535"));
    }
    match names {
        Some(names) if names.len() + 1 == classes => Ok((classes, names)),
        Some(names) => Err(format!(
            "it names {} classes but has outputs for {} and the background",
            names.len(),
            classes - 1
        )),
        None if classes == COCO.len() + 1 => Ok((classes, coco())),
        None => Err(format!(
            "it has {} classes and does not name them; add their names as a JSON list under `names` in its metadata",
            classes - 1
        )),
    }
}

/// Tensors that training leaves in a checkpoint and inference has no use for.
fn ignored(name: &str) -> bool {
    name.ends_with(".num_batches_tracked")
}

/// Every difference between the file and the architecture, as one phrase; none when it fits.
fn misfit(entries: &BTreeMap<String, Entry>, classes: usize) -> Option<String> {
    let expected: BTreeMap<String, Vec<usize>> = ssd300::state_shapes(classes).into_iter().collect();
    let missing: Vec<_> =
        expected.keys().filter(|name| !entries.contains_key(*name)).map(String::as_str).collect();
    let unknown: Vec<_> = entries
        .keys()
        .filter(|name| !ignored(name) && !expected.contains_key(*name))
        .map(String::as_str)
        .collect();
    let misshaped: Vec<_> = expected
        .iter()
        .filter_map(|(name, shape)| {
            let found = &entries.get(name)?.shape;
            (found != shape).then(|| format!("{name} ({found:?} instead of {shape:?})"))
        })
        .collect();
    if missing.len() == expected.len() {
        let first = unknown.first().map_or(String::new(), |name| format!(" (it holds {name}, among others)"));
        return Some(format!("it has none of its {} tensors{first}", expected.len()));
    }
    let parts: Vec<_> = [
        ("missing: ", missing.join(", ")),
        ("of another shape: ", misshaped.join(", ")),
        ("unknown: ", unknown.join(", ")),
    ]
    .into_iter()
    .filter(|(_, list)| !list.is_empty())
    .map(|(label, list)| format!("{label}{list}"))
    .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The values of one tensor as fp32.
fn decode(entry: &Entry, data: &[u8]) -> Result<Vec<f32>, String> {
    let bytes = &data[entry.data_offsets[0]..entry.data_offsets[1]];
    let count: usize = entry.shape.iter().product();
    let (width, values): (usize, Vec<f32>) = match entry.dtype.as_str() {
        "F32" => (4, bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        "F16" => (2, bytes.as_chunks().0.iter().map(|b| half(u16::from_le_bytes(*b))).collect()),
        other => return Err(format!("is stored as {other}, and only F16 and F32 are read")),
    };
    if bytes.len() != count * width {
        return Err("has another length than its shape says".to_owned());
    }
    if values.iter().any(|value| !value.is_finite()) {
        return Err("holds values that are not finite numbers".to_owned());
    }
    Ok(values)
}

/// IEEE 754 binary16 to binary32, exactly.
fn half(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let fraction = u32::from(bits & 0x3ff);
    match exponent {
        0 => {
            // Subnormal: fraction × 2^-24, which binary32 holds exactly.
            let magnitude = f32::from(bits & 0x3ff) / 16_777_216.0;
            f32::from_bits(magnitude.to_bits() | sign)
        }
        0x1f => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}
