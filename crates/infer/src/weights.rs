//! Weights files: safetensors, or what `torch.save` wrote, checked against the architecture before a single tensor
//! reaches libtorch.

mod pickle;
mod safetensors;
mod torch_save;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use common::labels::COCO;
use sha2::{Digest, Sha256};

use crate::calibration::{Scales, Uncalibrated};
use crate::ssd300;

/// Where a safetensors file's metadata keep the [`Scales`] for int8.
const SCALES_KEY: &str = "int8";

/// Larger files are not read into memory: a checkpoint with its optimizer's state has some 200 MB.
const MAX_BYTES: u64 = 4 << 30;

/// Why a model cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file could not be read.
    #[error("The model {} can't be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why. Not the error's source, for its text is in the sentence already.
        reason: std::io::Error,
    },
    /// The file is neither safetensors nor of `torch.save`, or is damaged.
    #[error(
        "{} is no usable weights file: {reason}; give a .safetensors file, or a checkpoint that torch.save wrote",
        path.display()
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

const FILE: &str = "ssd300-v2.safetensors";

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
    /// When the file can't be read, is no weights file, or holds other tensors than the architecture's.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Ok(read(path)?.0)
    }

    /// Its tensors.
    ///
    /// # Errors
    /// As [`ModelFile::open`], and when the file has changed since.
    pub fn tensors(&self) -> Result<StateDict, ModelError> {
        let (found, dict) = read(&self.path)?;
        self.unchanged(&found.digest)?;
        Ok(dict)
    }

    /// The file with these scales in it, in place of any that it has: safetensors, in which every tensor is the same to
    /// the last byte, and so another model by its digest.
    ///
    /// # Errors
    /// As [`ModelFile::tensors`].
    pub fn with_scales(&self, scales: &Scales) -> Result<Vec<u8>, ModelError> {
        let malformed = |reason| ModelError::Malformed { path: self.path.clone(), reason };
        let bytes = bytes_of(&self.path)?;
        self.unchanged(&digest(&bytes))?;
        let converted;
        let bytes = if torch_save::is(&bytes) {
            let mut contents = torch_save::parse(&bytes).map_err(malformed)?;
            contents.tensors.retain(|name, _| !ignored(name));
            converted = safetensors::encode(&contents).map_err(malformed)?;
            &converted
        } else {
            &bytes
        };
        safetensors::with_metadata(bytes, SCALES_KEY, &scales.to_json()).map_err(malformed)
    }

    fn unchanged(&self, digest: &str) -> Result<(), ModelError> {
        if digest == self.digest {
            return Ok(());
        }
        let reason = "it has changed since it was opened".to_owned();
        Err(ModelError::Malformed { path: self.path.clone(), reason })
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
    scales: Result<Scales, Uncalibrated>,
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

    /// The scales of the activations, which int8 needs.
    ///
    /// # Errors
    /// When the file has none, or damaged ones.
    pub fn scales(&self) -> Result<&Scales, &Uncalibrated> {
        self.scales.as_ref()
    }

    /// A tensor the architecture has. The dict was validated, so only a slip in this crate ends in the error.
    pub(crate) fn get(&self, name: &str) -> Result<&Array, ssd300::NetworkError> {
        self.tensors
            .get(name)
            .ok_or_else(|| ssd300::NetworkError::Torch(format!("the tensor {name} was not validated")))
    }
}

/// What a file holds, not yet held against the architecture.
struct Contents<'a> {
    tensors: BTreeMap<String, Found<'a>>,
    /// The classes' names, if it says them.
    names: Option<Vec<String>>,
    /// How many outputs a box has, background included, if it says so.
    classes: Option<usize>,
    /// The scales for int8, as they stand in its metadata.
    scales: Option<String>,
}

/// A tensor in a file.
struct Found<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Elements from one index to the next along each axis; none when they lie in order, without gaps.
    strides: Option<Vec<usize>>,
    /// From its first element on.
    bytes: &'a [u8],
}

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dtype {
    F32,
    F16,
    Bf16,
    F64,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
    /// One that no weights are stored as.
    Strange,
}

impl Dtype {
    fn of_safetensors(name: &str) -> Self {
        match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F64" => Self::F64,
            "I64" => Self::I64,
            "I32" => Self::I32,
            "I16" => Self::I16,
            "I8" => Self::I8,
            "U8" => Self::U8,
            "BOOL" => Self::Bool,
            _ => Self::Strange,
        }
    }

    /// As safetensors calls it.
    fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::Strange => return None,
        })
    }

    /// Bytes of a number.
    fn width(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool | Self::Strange => 1,
        }
    }
}

/// Reads the file: its identity and its tensors, checked against the architecture.
fn read(path: &Path) -> Result<(ModelFile, StateDict), ModelError> {
    let malformed = |reason: String| ModelError::Malformed { path: path.to_owned(), reason };
    let bytes = bytes_of(path)?;
    let parse = if torch_save::is(&bytes) { torch_save::parse } else { safetensors::parse };
    let Contents { mut tensors, names, classes, scales } = parse(&bytes).map_err(malformed)?;
    tensors.retain(|name, _| !ignored(name));
    let (classes, names) = self::classes(classes, names, &tensors).map_err(malformed)?;
    if let Some(reason) = misfit(&tensors, classes) {
        return Err(ModelError::Misfit { path: path.to_owned(), reason });
    }
    // The architecture's own tensors never share their numbers. Where a file's do, a small one could ask for much
    // memory.
    let stored: usize = tensors.values().map(|found| found.count() * found.dtype.width()).sum();
    if stored > bytes.len() {
        return Err(malformed("its tensors overlap".to_owned()));
    }
    let mut dict = HashMap::with_capacity(tensors.len());
    for (name, found) in tensors {
        let data = found.decode().map_err(|reason| malformed(format!("{name} {reason}")))?;
        dict.insert(name, Array { shape: found.shape, data });
    }
    // Damaged scales are no reason to refuse the weights: only int8 needs them.
    let scales = scales.ok_or(Uncalibrated::Never).and_then(|text| Scales::parse(&text));
    let file = ModelFile { path: path.to_owned(), digest: digest(&bytes), names };
    Ok((file, StateDict { tensors: dict, classes, scales }))
}

/// All of the file, if it is not far larger than any weights.
fn bytes_of(path: &Path) -> Result<Vec<u8>, ModelError> {
    let unreadable = |reason| ModelError::Unreadable { path: path.to_owned(), reason };
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_BYTES {
        return Err(ModelError::Malformed {
            path: path.to_owned(),
            reason: format!("it has {} GB, far more than this network", size / 1_000_000_000),
        });
    }
    fs::read(path).map_err(unreadable)
}

/// SHA-256, hexadecimal.
fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How many outputs there are, and what they are called.
fn classes(
    stated: Option<usize>,
    names: Option<Vec<String>>,
    tensors: &BTreeMap<String, Found<'_>>,
) -> Result<(usize, Vec<String>), String> {
    // The file may say nothing: the width of the first conf head tells then.
    let measured = tensors
        .get("conf.0.bias")
        .and_then(|found| found.shape.first())
        .filter(|width| **width > 0 && width.is_multiple_of(ssd300::BOXES_PER_CELL[0]))
        .map(|width| width / ssd300::BOXES_PER_CELL[0]);
    let classes =
        stated.or(measured).or_else(|| names.as_ref().map(|names| names.len() + 1)).unwrap_or(COCO.len() + 1);
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
        None if classes == COCO.len() + 1 => {
            Ok((classes, COCO.iter().map(|(_, name)| (*name).to_owned()).collect()))
        }
        None => Err(format!(
            "it has {} classes and does not name them; add their names as a JSON list under `names` in its metadata, \
             which scripts/convert_checkpoint.py --names does",
            classes - 1
        )),
    }
}

/// Tensors that training leaves in a checkpoint and inference has no use for.
fn ignored(name: &str) -> bool {
    name.ends_with(".num_batches_tracked")
}

/// Every difference between the file and the architecture, as one phrase; none when it fits.
fn misfit(tensors: &BTreeMap<String, Found<'_>>, classes: usize) -> Option<String> {
    let expected: BTreeMap<String, Vec<usize>> = ssd300::state_shapes(classes).into_iter().collect();
    let missing: Vec<_> =
        expected.keys().filter(|name| !tensors.contains_key(*name)).map(String::as_str).collect();
    let unknown: Vec<_> =
        tensors.keys().filter(|name| !expected.contains_key(*name)).map(String::as_str).collect();
    let misshaped: Vec<_> = expected
        .iter()
        .filter_map(|(name, shape)| {
            let found = &tensors.get(name)?.shape;
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

impl Found<'_> {
    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its values as fp32, in the order of its axes.
    fn decode(&self) -> Result<Vec<f32>, String> {
        let values: Vec<f32> = match self.dtype {
            Dtype::F32 => self.gather(f32::from_le_bytes),
            Dtype::F16 => self.gather(|bytes| half(u16::from_le_bytes(bytes))),
            Dtype::Bf16 => self.gather(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)),
            Dtype::F64 => self.gather(|bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::Strange => {
                return Err("is stored in a way that is not read: only F16, BF16, F32 and F64 are".to_owned());
            }
            other => {
                return Err(format!("is stored as {other:?}, and only F16, BF16, F32 and F64 are read"));
            }
        };
        let in_order = self.strides.is_none();
        if values.len() != self.count() || in_order && self.bytes.len() != values.len() * self.dtype.width() {
            return Err("has another length than its shape says".to_owned());
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err("holds values that are not finite numbers".to_owned());
        }
        Ok(values)
    }

    /// Its bytes in the order of its axes.
    fn in_order(&self) -> Cow<'_, [u8]> {
        if self.strides.is_none() {
            return Cow::Borrowed(self.bytes);
        }
        Cow::Owned(match self.dtype.width() {
            8 => self.gather(|bytes: [u8; 8]| bytes).concat(),
            4 => self.gather(|bytes: [u8; 4]| bytes).concat(),
            2 => self.gather(|bytes: [u8; 2]| bytes).concat(),
            _ => self.gather(|bytes: [u8; 1]| bytes).concat(),
        })
    }

    fn gather<const N: usize, T>(&self, number: impl Fn([u8; N]) -> T) -> Vec<T> {
        let (all, _) = self.bytes.as_chunks::<N>();
        let Some(strides) = &self.strides else { return all.iter().map(|bytes| number(*bytes)).collect() };
        let mut values = Vec::with_capacity(self.count());
        let mut index = vec![0; self.shape.len()];
        for _ in 0..self.count() {
            let at: usize = index.iter().zip(strides).map(|(index, stride)| index * stride).sum();
            values.extend(all.get(at).map(|bytes| number(*bytes)));
            // The next index: the last axis runs fastest.
            for (index, size) in index.iter_mut().zip(&self.shape).rev() {
                *index += 1;
                if *index < *size {
                    break;
                }
                *index = 0;
            }
        }
        values
    }
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
