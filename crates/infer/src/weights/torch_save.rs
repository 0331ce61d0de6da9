//! Files of `torch.save`, such as NVIDIA's published checkpoint: read without Python, and without running what is
//! in them.
//!
//! Today's format is a zip archive, nothing in it compressed: `NAME/data.pkl` is the pickle of the saved object, in
//! which tensors speak of their storages by a key, and `NAME/data/KEY` is a storage. Files from before PyTorch 1.6
//! are five pickles (a magic number, the protocol's version, facts about the system, the object, the storages' keys),
//! then for each key the count of its elements (i64) and its bytes.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Cursor};

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{MAX_BYTES, Pickle, Storage, Value, View};
use super::{Contents, Found};

/// The first pickle of the old format: protocol 2, the number 0x1950a86a20f9469cfc6c.
const OLD_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e";
/// What the second pickle of the old format says.
const OLD_PROTOCOL: Value<'static> = Value::Int(1001);
/// Keys under which a training's checkpoint keeps the state_dict.
const NESTED: [&str; 2] = ["model", "state_dict"];
/// What training on several GPUs puts before every name.
const PREFIX: &str = "module.";

/// Whether the file is one of `torch.save`, or at least a pickle or archive that may want to be.
pub(super) fn is(bytes: &[u8]) -> bool {
    // A safetensors header of 0x280 bytes begins as a pickle does, but goes on with zeros.
    bytes.starts_with(b"PK\x03\x04")
        || matches!(bytes, [0x80, 2..=5, rest @ ..] if !rest.starts_with(&[0; 4]))
}

/// Reads the file's list of tensors, their bytes checked as far as the format allows.
///
/// # Errors
/// A phrase that says what is wrong.
pub(super) fn parse(bytes: &[u8]) -> Result<Contents<'_>, String> {
    if bytes.starts_with(OLD_MAGIC) {
        return old(bytes);
    }
    if !bytes.starts_with(b"PK\x03\x04") {
        return Err("it is a pickle that torch.save did not write".to_owned());
    }
    let mut archive = Archive::open(bytes)?;
    let pickle = archive.pickle()?;
    let pickle = Pickle::read(pickle)?;
    let mut storages = HashMap::new();
    contents(&pickle, &mut |storage| {
        // Tensors may share a storage, which need not be verified again.
        if let Some(found) = storages.get(storage.key) {
            return Ok(*found);
        }
        let found = archive.storage(storage.key)?;
        storages.insert(storage.key.to_owned(), found);
        Ok(found)
    })
}

struct Archive<'a> {
    bytes: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    folder: String,
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let zip = ZipArchive::new(Cursor::new(bytes))
            .map_err(|_| "it is a zip archive that is damaged or cut short".to_owned())?;
        let mut folder = None;
        for name in zip.file_names() {
            let name = name.map_err(|_| "it is a zip archive with names that cannot be read".to_owned())?;
            match name.rsplit_once('/') {
                Some((_, "constants.pkl")) => {
                    return Err("it is TorchScript, which is code, and no state_dict".to_owned());
                }
                Some((parent, "data.pkl")) => folder = Some(parent.to_owned()),
                _ => {}
            }
        }
        let folder = folder.ok_or("it is a zip archive that torch.save did not write")?;
        let mut archive = Self { bytes, zip, folder };
        match archive.entry("byteorder") {
            Ok(order) if order != b"little" => Err("it was saved on a big-endian machine".to_owned()),
            _ => Ok(archive),
        }
    }

    fn pickle(&mut self) -> Result<&'a [u8], String> {
        let pickle = self.entry("data.pkl")?;
        if pickle.len() > MAX_BYTES {
            return Err("its pickle is longer than that of any such network".to_owned());
        }
        Ok(pickle)
    }

    fn storage(&mut self, key: &str) -> Result<&'a [u8], String> {
        self.entry(&format!("data/{key}"))
    }

    /// The bytes of an entry where they lie in the file, its checksum verified.
    fn entry(&mut self, name: &str) -> Result<&'a [u8], String> {
        let path = format!("{}/{name}", self.folder);
        let damaged = || format!("its entry {path} is missing or damaged");
        let mut entry = self.zip.by_name(&path).map_err(|_| damaged())?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(format!("its entry {path} is compressed, which torch.save never does"));
        }
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok()).ok_or_else(damaged)?;
        let size = usize::try_from(entry.size()).map_err(|_| damaged())?;
        let found = start.checked_add(size).and_then(|end| self.bytes.get(start..end)).ok_or_else(damaged)?;
        // The reader compares the checksum at the end.
        io::copy(&mut entry, &mut io::sink()).map_err(|_| damaged())?;
        Ok(found)
    }
}

fn old(bytes: &[u8]) -> Result<Contents<'_>, String> {
    let mut rest = &bytes[OLD_MAGIC.len()..];
    let mut next = || {
        let pickle = Pickle::read(rest)?;
        rest = &rest[pickle.length..];
        Ok::<_, String>(pickle)
    };
    let (protocol, system, object, keys) = (next()?, next()?, next()?, next()?);
    if protocol.root != OLD_PROTOCOL {
        return Err("it is of a version of torch.save's format that is not known here".to_owned());
    }
    // Its facts are three; a big-endian machine says so in a value that is not kept, but its counts betray it.
    if system.dict(system.root).is_none() {
        return Err("its pickle is damaged".to_owned());
    }
    let widths: HashMap<&str, (usize, usize)> =
        object.storages().map(|storage| (storage.key, (storage.count, storage.dtype.width()))).collect();
    let mut storages: HashMap<&str, &[u8]> = HashMap::new();
    for key in keys.items(keys.root).ok_or("its list of storages is damaged")? {
        let cut = || "it is cut short: a storage lies beyond its end".to_owned();
        let Value::Text(key) = key else { return Err("its list of storages is damaged".to_owned()) };
        let (stated, after) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let (count, width) = *widths.get(key).ok_or("it lists a storage that no tensor has")?;
        if u64::from_le_bytes(*stated) != count as u64 {
            return Err("it states the size of a storage twice, and differently".to_owned());
        }
        let length = count.checked_mul(width).ok_or_else(cut)?;
        let (storage, after) = after.split_at_checked(length).ok_or_else(cut)?;
        storages.insert(key, storage);
        rest = after;
    }
    contents(&object, &mut |storage| {
        storages.get(storage.key).copied().ok_or_else(|| "it lacks the storage of a tensor".to_owned())
    })
}

/// The tensors of the saved object, their bytes asked of `storage`.
fn contents<'a>(
    pickle: &Pickle<'_>,
    storage: &mut dyn FnMut(Storage<'_>) -> Result<&'a [u8], String>,
) -> Result<Contents<'a>, String> {
    let mut names = None;
    let mut object = pickle.root;
    // A checkpoint nests a level or two; a circle would never end.
    for _ in 0..4 {
        let Some(pairs) = pickle.dict(object) else { break };
        names = names.or_else(|| self::names(pickle, object));
        if !pairs.is_empty() && pairs.iter().all(|(_, value)| pickle.tensor(*value).is_some()) {
            let mut tensors = BTreeMap::new();
            for (name, value) in pairs {
                let (Value::Text(name), Some(view)) = (name, pickle.tensor(*value)) else {
                    return Err("its state_dict has a tensor without a name".to_owned());
                };
                let name = name.strip_prefix(PREFIX).unwrap_or(name);
                let found = found(view, storage).map_err(|reason| format!("{name} {reason}"))?;
                tensors.insert(name.to_owned(), found);
            }
            return Ok(Contents { tensors, names, classes: None, scales: None });
        }
        let inner = NESTED.iter().find_map(|key| pickle.get(object, key));
        let Some(inner) = inner else { break };
        object = inner;
    }
    let keys: Vec<_> = pickle
        .dict(object)
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| match key {
            Value::Text(key) => Some(key.escape_debug().take(40).collect::<String>()),
            _ => None,
        })
        .take(10)
        .collect();
    Err(format!(
        "it holds no state_dict, that is named tensors, or them under `model` or `state_dict`{}",
        if keys.is_empty() { String::new() } else { format!(" (it holds {})", keys.join(", ")) }
    ))
}

fn found<'a>(
    view: &View<'_>,
    storage: &mut dyn FnMut(Storage<'_>) -> Result<&'a [u8], String>,
) -> Result<Found<'a>, String> {
    let View { storage: of, offset, shape, strides } = view;
    let bytes = storage(*of)?;
    let width = of.dtype.width();
    if Some(bytes.len()) != of.count.checked_mul(width) {
        return Err("lies in a storage of another size than stated".to_owned());
    }
    let beyond = || "reaches out of its storage".to_owned();
    let count = shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size)).ok_or_else(beyond)?;
    // More elements than the storage has: a tensor that was expanded and holds each number many times, which
    // weights never do, and a small file could claim all memory by.
    if count > of.count {
        return Err(beyond());
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(*offset, |at, (size, stride)| at.checked_add(size.saturating_sub(1).checked_mul(*stride)?));
    if count > 0 && last.ok_or_else(beyond)? >= of.count {
        return Err(beyond());
    }
    let first = offset.checked_mul(width).ok_or_else(beyond)?;
    let bytes = bytes.get(first..).ok_or_else(beyond)?;
    let mut step = 1usize;
    let in_order = shape.iter().zip(strides).rev().all(|(size, stride)| {
        let fits = *size == 1 || *stride == step;
        // Where an axis has no elements, the others' sizes are anything.
        step = step.saturating_mul(*size);
        fits
    });
    Ok(if in_order {
        Found { dtype: of.dtype, shape: shape.clone(), strides: None, bytes: &bytes[..count * width] }
    } else {
        Found { dtype: of.dtype, shape: shape.clone(), strides: Some(strides.clone()), bytes }
    })
}

/// The classes' names, as Boxreel's training keeps them (`names`, without background) or NVIDIA's (`label_map`,
/// number to name, 0 the background).
fn names(pickle: &Pickle<'_>, object: Value<'_>) -> Option<Vec<String>> {
    if let Some(list) = pickle.get(object, "names").and_then(|list| pickle.items(list)) {
        let name = |value: &Value<'_>| match value {
            Value::Text(name) => Some((*name).to_owned()),
            _ => None,
        };
        return list.iter().map(name).collect();
    }
    let map = pickle.get(object, "label_map").and_then(|map| pickle.dict(map))?;
    let mut names = BTreeMap::new();
    for (number, name) in map {
        let (Value::Int(number), Value::Text(name)) = (number, name) else { return None };
        names.insert(*number, (*name).to_owned());
    }
    let background = names.remove(&0)?;
    let whole = background == "background" && names.keys().copied().eq(1..=names.len() as i64);
    whole.then(|| names.into_values().collect())
}
