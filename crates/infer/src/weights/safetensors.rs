//! safetensors: the length of the header (u64, little-endian), the header (JSON: name → dtype, shape, byte
//! range; `__metadata__` → strings), then the bytes.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::{Contents, Dtype, Found};

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// Reads the file's list of tensors.
///
/// # Errors
/// A phrase that says what is wrong.
pub(super) fn parse(bytes: &[u8]) -> Result<Contents<'_>, String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("it is shorter than a safetensors header")?;
    let (header, data) = usize::try_from(u64::from_le_bytes(*length))
        .ok()
        .and_then(|length| rest.split_at_checked(length))
        .ok_or("it is not safetensors, or is cut short")?;
    let mut map: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|_| "it is not safetensors (its header is not JSON)")?;
    let metadata: HashMap<String, String> = match map.remove("__metadata__") {
        Some(value) => serde_json::from_value(value).map_err(|_| "its metadata are not strings")?,
        None => HashMap::new(),
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in map {
        let Entry { dtype, shape, data_offsets: [start, end] } = serde_json::from_value(value)
            .map_err(|_| format!("its header describes {name} in a way safetensors does not"))?;
        let bytes =
            data.get(start..end).ok_or_else(|| format!("it is cut short: {name} lies beyond its end"))?;
        tensors.insert(name, Found { dtype: Dtype::of_safetensors(&dtype), shape, strides: None, bytes });
    }
    let names = match metadata.get("names") {
        Some(text) => {
            Some(serde_json::from_str(text).map_err(|_| "its `names` are not a JSON list of strings")?)
        }
        None => None,
    };
    let classes = match metadata.get("classes") {
        Some(text) => Some(text.parse().map_err(|_| "its `classes` is no number")?),
        None => None,
    };
    Ok(Contents { tensors, names, classes })
}
