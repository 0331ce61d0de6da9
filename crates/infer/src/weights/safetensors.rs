//! safetensors: the length of the header (u64, little-endian), the header (JSON: name → dtype, shape, byte
//! range; `__metadata__` → strings), then the bytes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::{Contents, Dtype, Found};

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// What comes before the tensors' bytes.
type Header = BTreeMap<String, serde_json::Value>;

/// Where the header keeps what is no tensor.
const METADATA: &str = "__metadata__";

/// The header and the tensors' bytes.
fn split(bytes: &[u8]) -> Result<(Header, &[u8]), String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("it is shorter than a safetensors header")?;
    let (header, data) = usize::try_from(u64::from_le_bytes(*length))
        .ok()
        .and_then(|length| rest.split_at_checked(length))
        .ok_or("it is not safetensors, or is cut short")?;
    let header =
        serde_json::from_slice(header).map_err(|_| "it is not safetensors (its header is not JSON)")?;
    Ok((header, data))
}

/// The inverse of [`split`].
fn join(header: &Header, data: &[u8]) -> Result<Vec<u8>, String> {
    let mut text = serde_json::to_vec(header).map_err(|_| "its header can't be written")?;
    // The tensors' bytes begin at a multiple of eight, for readers that map the file.
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes(), text.as_slice(), data].concat())
}

/// Takes the metadata out of the header.
fn metadata(header: &mut Header) -> Result<BTreeMap<String, String>, String> {
    match header.remove(METADATA) {
        Some(value) => Ok(serde_json::from_value(value).map_err(|_| "its metadata are not strings")?),
        None => Ok(BTreeMap::new()),
    }
}

/// The file with `value` as metadata under `key`; the tensors' bytes stay as they are.
///
/// # Errors
/// As [`parse`].
pub(super) fn with_metadata(bytes: &[u8], key: &str, value: &str) -> Result<Vec<u8>, String> {
    let (mut header, data) = split(bytes)?;
    let mut metadata = metadata(&mut header)?;
    metadata.insert(key.to_owned(), value.to_owned());
    header.insert(METADATA.to_owned(), json!(metadata));
    join(&header, data)
}

/// A file of these tensors and names.
///
/// # Errors
/// A phrase that says which tensor can't be stored.
pub(super) fn encode(contents: &Contents<'_>) -> Result<Vec<u8>, String> {
    let mut header = Header::new();
    if let Some(names) = &contents.names {
        header.insert(METADATA.to_owned(), json!({"names": json!(names).to_string()}));
    }
    // Wider numbers first keeps all of them aligned.
    let mut tensors: Vec<_> = contents.tensors.iter().collect();
    tensors.sort_by_key(|(_, found)| Reverse(found.dtype.width()));
    let mut data = Vec::new();
    for (name, found) in tensors {
        let dtype =
            found.dtype.name().ok_or_else(|| format!("{name} is stored in a way that is not read"))?;
        let start = data.len();
        data.extend_from_slice(&found.in_order());
        let entry = json!({"dtype": dtype, "shape": found.shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    join(&header, &data)
}

/// Reads the file's list of tensors.
///
/// # Errors
/// A phrase that says what is wrong.
pub(super) fn parse(bytes: &[u8]) -> Result<Contents<'_>, String> {
    let (mut header, data) = split(bytes)?;
    let mut metadata = metadata(&mut header)?;
    let mut tensors = BTreeMap::new();
    for (name, value) in header {
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
    Ok(Contents { tensors, names, classes, scales: metadata.remove(super::SCALES_KEY) })
}
