//! The numbers that `tests/golden/reference.py` and these tests both grow, instead of storing them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use infer::ModelFile;
use infer::calibration::Calibrator;
use infer::device::multiplies_int8;
use infer::ssd300::{FRAME_BYTES, SIDE, state_shapes};
use serde_json::json;

/// splitmix64, started at the FNV-1a hash of `name`.
pub fn stream(name: &str) -> impl Iterator<Item = u64> {
    let mut state = 0xCBF2_9CE4_8422_2325_u64;
    for byte in name.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    }
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    })
}

/// The tensor `name` as reference.py's `grown` makes it.
pub fn tensor(name: &str, shape: &[usize]) -> Vec<f32> {
    let head = name.split('.').next().unwrap();
    let (mut scale, mut offset) = (0.1, 0.0);
    if let [_, channels, rows, columns] = shape {
        let by_head = match head {
            "loc" => 0.2,
            "conf" => 0.27,
            _ => 1.0,
        };
        scale = by_head * (6.0 / (channels * rows * columns) as f64).sqrt();
    } else if head == "conf" {
        scale = 1.0;
    } else if name.ends_with("running_var") {
        (scale, offset) = (0.25, 1.0);
    } else if name.ends_with(".weight") {
        (scale, offset) = if name.contains(".bn3.") { (0.1, 0.3) } else { (0.2, 1.0) };
    }
    let background = if head == "conf" && shape.len() == 1 { shape[0] / 81 } else { 0 };
    stream(name)
        .take(shape.iter().product())
        .enumerate()
        .map(|(i, bits)| {
            let v = (bits >> 40) as f64 * (2.0f64).powi(-23) - 1.0;
            let offset = if i < background { 13.0 } else { offset };
            (offset + v * scale) as f32
        })
        .collect()
}

/// A picture as reference.py's `picture` makes it.
pub fn picture(name: &str) -> Vec<u8> {
    let bytes = |what: &str, count| -> Vec<u64> {
        stream(&format!("picture.{name}.{what}")).take(count).map(|bits| bits >> 56).collect()
    };
    let (coarse, fine) = (bytes("coarse", 30 * 30 * 3), bytes("fine", FRAME_BYTES));
    (0..FRAME_BYTES)
        .map(|i| {
            let (row, column, channel) = (i / (SIDE * 3), i / 3 % SIDE, i % 3);
            ((coarse[(row / 10 * 30 + column / 10) * 3 + channel] * 3 + fine[i]) / 4) as u8
        })
        .collect()
}

/// A state dict: name → (dtype, shape, bytes).
pub type Dict = BTreeMap<String, (&'static str, Vec<usize>, Vec<u8>)>;

/// Zeros of the given shapes.
pub fn zeros(classes: usize) -> Dict {
    state_shapes(classes)
        .into_iter()
        .map(|(name, shape)| {
            let bytes = vec![0; shape.iter().product::<usize>() * 4];
            (name, ("F32", shape, bytes))
        })
        .collect()
}

/// Writes `dict` as safetensors.
pub fn write(path: &Path, dict: &Dict, metadata: &serde_json::Value) {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), metadata.clone());
    let mut at = 0;
    for (name, (dtype, shape, bytes)) in dict {
        let end = at + bytes.len();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    dict.values().for_each(|(_, _, bytes)| file.write_all(bytes).unwrap());
    file.flush().unwrap();
}

static GROWN: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let dict: Dict = state_shapes(81)
        .into_iter()
        .map(|(name, shape)| {
            let bytes = tensor(&name, &shape).iter().flat_map(|value| value.to_le_bytes()).collect();
            (name, ("F32", shape, bytes))
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grown.safetensors");
    write(&path, &dict, &json!({"classes": "81"}));
    (folder, path)
});

/// The file of the grown weights, made once a run of the tests.
pub fn weights() -> &'static Path {
    &GROWN.1
}

/// The bytes of the grown weights' file with the scales that fit the named pictures.
pub fn calibrated(pictures: &[&str]) -> Vec<u8> {
    let model = ModelFile::open(weights()).unwrap();
    let mut calibrator = Calibrator::start(&model).unwrap();
    for name in pictures {
        calibrator.observe(&picture(name)).unwrap();
    }
    model.with_scales(&calibrator.scales()).unwrap()
}

static INT8: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("calibrated.safetensors");
    std::fs::write(&path, calibrated(&["four", "five", "six", "seven"])).unwrap();
    (folder, path)
});

/// The file of the grown weights with scales, made once a run of the tests; none where the processor has no int8.
pub fn int8_weights() -> Option<&'static Path> {
    if !multiplies_int8() {
        eprintln!("skipped: this processor does not multiply 8-bit integers");
        return None;
    }
    Some(&INT8.1)
}
