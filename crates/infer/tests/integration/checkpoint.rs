//! Files of `torch.save`: they become the same model as their converted copies, and nothing in them runs.

use std::path::{Path, PathBuf};

use common::detection::Detection;
use common::job::Precision;
use infer::calibration::Scales;
use infer::{Detector, DetectorSettings, DeviceChoice, Frames, ModelError, ModelFile, NmsOptions};
use infer::{PrecisionChoice, ssd300};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::convert;
use crate::grown::{self, Dict};
use crate::torch_file::{Pickled, Py, Tensor, text};

/// fp32 to binary16, exactly where it is representable and otherwise towards zero.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let exponent = (bits >> 23 & 0xff) as i32 - 112;
    if exponent <= 0 { sign } else { sign | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16 }
}

/// The grown weights as NVIDIA's training with mixed precision stores them: convolutions in fp16, the rest in fp32.
fn mixed() -> Dict {
    ssd300::state_shapes(81)
        .into_iter()
        .map(|(name, shape)| {
            let values = grown::tensor(&name, &shape);
            if shape.len() == 4 {
                let bytes = values.iter().flat_map(|value| half(*value).to_le_bytes()).collect();
                (name, ("F16", shape, bytes))
            } else {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                (name, ("F32", shape, bytes))
            }
        })
        .collect()
}

fn tensor((dtype, shape, bytes): &(&'static str, Vec<usize>, Vec<u8>)) -> Py {
    let kind = if *dtype == "F16" { "HalfStorage" } else { "FloatStorage" };
    Py::Tensor(Tensor::new(kind, shape, bytes.clone()))
}

/// A checkpoint with all that NVIDIA's training leaves in one.
fn nvidia(dict: &Dict) -> Py {
    let mut model: Vec<(Py, Py)> = Vec::new();
    for (name, stored) in dict {
        model.push((text(&format!("module.{name}")), tensor(stored)));
        if let Some(norm) = name.strip_suffix("running_var") {
            let counted = Tensor::new("LongStorage", &[], 240_000u64.to_le_bytes().to_vec());
            model.push((text(&format!("module.{norm}num_batches_tracked")), Py::Tensor(counted)));
        }
    }
    let momentum = Tensor::new("FloatStorage", &[2, 3], vec![1; 24]);
    let names = common::labels::COCO.iter().map(|(_, name)| *name);
    let label_map = (0..).map(Py::Int).zip(["background"].into_iter().chain(names).map(text)).collect();
    Py::Dict(vec![
        (text("epoch"), Py::Int(65)),
        (text("iteration"), Py::Int(240_000)),
        (
            text("optimizer"),
            Py::Dict(vec![
                (
                    text("state"),
                    Py::Dict(vec![(
                        Py::Int(0),
                        Py::Dict(vec![(text("momentum_buffer"), Py::Tensor(momentum))]),
                    )]),
                ),
                (
                    text("param_groups"),
                    Py::List(vec![Py::Dict(vec![
                        (text("lr"), Py::Float(2.6e-5)),
                        (text("foreach"), Py::None),
                        (text("params"), Py::List(vec![Py::Int(0), Py::Int(1)])),
                    ])]),
                ),
            ]),
        ),
        (
            text("scheduler"),
            Py::Dict(vec![(
                text("milestones"),
                Py::Counter(vec![(Py::Int(43), Py::Int(1)), (Py::Int(54), Py::Int(1))]),
            )]),
        ),
        (text("label_map"), Py::Dict(label_map)),
        (text("model"), Py::OrderedDict(model)),
    ])
}

fn counts(pickled: &Pickled, object: &Py) -> Vec<usize> {
    fn walk(object: &Py, counts: &mut Vec<usize>) {
        match object {
            Py::Tensor(tensor) => counts.push(tensor.count),
            Py::List(items) => items.iter().for_each(|item| walk(item, counts)),
            Py::Dict(pairs) | Py::OrderedDict(pairs) | Py::Counter(pairs) => {
                pairs.iter().for_each(|(_, value)| walk(value, counts));
            }
            Py::None | Py::Int(_) | Py::Float(_) | Py::Text(_) | Py::Opcodes(_) => {}
        }
    }
    let mut counts = Vec::new();
    walk(object, &mut counts);
    assert_eq!(counts.len(), pickled.storages.len());
    counts
}

fn zip(object: &Py) -> Vec<u8> {
    Pickled::new(object, false).zip()
}

fn old(object: &Py) -> Vec<u8> {
    let pickled = Pickled::new(object, true);
    pickled.old(&counts(&pickled, object))
}

async fn detections(path: &Path) -> Vec<Vec<Detection>> {
    let settings = DetectorSettings {
        device: DeviceChoice::Cpu,
        precision: PrecisionChoice::Exactly(Precision::Fp32),
        batch: Some(1),
        threads: Some(1),
    };
    let model = ModelFile::open(path).unwrap();
    assert_eq!((model.names.len(), model.names[79].as_str()), (80, "toothbrush"));
    let detector = Detector::start(&model, &settings).unwrap();
    let options = NmsOptions { iou: 0.5, max_det: 200 };
    let frames = Frames::of_bytes(grown::picture("one"));
    detector.detect(frames, options, &CancellationToken::new(), &|_| {}).await.unwrap()
}

#[tokio::test]
async fn nvidias_checkpoint_detects_what_its_converted_copy_detects() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let weights = mixed();
    let checkpoint = nvidia(&weights);
    std::fs::write(at("new.pt"), zip(&checkpoint)).unwrap();
    std::fs::write(at("old.pt"), old(&checkpoint)).unwrap();
    grown::write(&at("same.safetensors"), &weights, &json!({}));
    let expected = detections(&at("same.safetensors")).await;
    assert!(expected[0].len() > 50, "a comparison of nothing says nothing");
    assert_eq!(detections(&at("new.pt")).await, expected);
    assert_eq!(detections(&at("old.pt")).await, expected);
    for name in ["new.pt", "old.pt"] {
        let Some(output) = convert::script(&at(name), &at("converted.safetensors")) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(detections(&at("converted.safetensors")).await, expected, "{name} converted");
    }
}

/// What opening a file with this content says.
fn refusal(folder: &Path, bytes: &[u8]) -> String {
    let path = folder.join("model.pt");
    std::fs::write(&path, bytes).unwrap();
    ModelFile::open(&path).unwrap_err().to_string()
}

fn small(name: &str, value: Tensor) -> Py {
    Py::Dict(vec![(text("model"), Py::OrderedDict(vec![(text(name), Py::Tensor(value))]))])
}

fn bias() -> Tensor {
    Tensor::new("FloatStorage", &[16], vec![0; 64])
}

#[test]
fn code_is_refused_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("ran");
    let command = format!("touch {}", marker.display());
    let call = |module: &str, name: &str| {
        let mut bytes = format!("c{module}\n{name}\n(X").into_bytes();
        bytes.extend_from_slice(&(command.len() as u32).to_le_bytes());
        bytes.extend_from_slice(command.as_bytes());
        bytes.extend_from_slice(b"tR");
        Py::Opcodes(bytes)
    };
    for (object, said) in [
        (call("os", "system"), "it holds os.system, which is no tensor but code"),
        (call("posix", "system"), "it holds posix.system"),
        (call("builtins", "eval"), "it holds builtins.eval"),
        (call("torch", "load"), "it holds torch.load"),
        (call("torch.nn.modules.conv", "Conv2d"), "torch.save(model.state_dict(), path)"),
        (call("a\x1b[31m", &"b".repeat(500)), r"it holds a\u{1b}[31m.bbb"),
        (Py::Opcodes(b"ios\nsystem\n".to_vec()), "it holds an object that is no tensor"),
        (Py::Opcodes(b"ccollections\nOrderedDict\n)\x81".to_vec()), "it holds an object that is no tensor"),
        (Py::Opcodes(b"](X\x01\x00\x00\x00ae}b".to_vec()), "it holds an object that is no tensor"),
        (Py::Opcodes(b"\xff".to_vec()), "opcode 0xff"),
    ] {
        // Beside the tensors, and instead of them.
        let beside =
            Py::Dict(vec![(text("extra"), object.clone()), (text("model"), small("loc.0.bias", bias()))]);
        for object in [object.clone(), beside] {
            for bytes in [zip(&object), old(&object)] {
                let text = refusal(folder.path(), &bytes);
                assert!(text.contains(said), "{text}");
                assert!(text.chars().count() < 400 + folder.path().as_os_str().len(), "{text}");
            }
        }
    }
    assert!(!marker.exists());
}

#[test]
fn what_is_no_state_dict_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let say = |object: &Py| refusal(folder.path(), &zip(object));
    assert!(say(&Py::List(vec![])).contains("it holds no state_dict"));
    let nested = Py::Dict(vec![(text("weights"), small("a", bias())), (text("epoch"), Py::Int(3))]);
    assert!(say(&nested).contains("(it holds weights, epoch)"), "{}", say(&nested));
    // A dict in itself, by way of the memo.
    let circle = Py::Opcodes(b"}q\x00X\x05\x00\x00\x00modelh\x00s".to_vec());
    assert!(say(&circle).contains("it holds no state_dict"));
    // Another network: named, not listed.
    let other = small("module.backbone.conv1.weight", bias());
    assert!(
        say(&other).contains("none of its 289 tensors (it holds backbone.conv1.weight"),
        "{}",
        say(&other)
    );

    assert!(refusal(folder.path(), b"\x80\x04K\x07.").contains("a pickle that torch.save did not write"));
    let whole = zip(&small("loc.0.bias", bias()));
    assert!(refusal(folder.path(), &whole[..whole.len() - 30]).contains("damaged or cut short"));
    // A bit of a storage flipped: the archive's checksum tells.
    let mut flipped = whole.clone();
    let storage = whole.windows(64).position(|bytes| bytes == [0; 64]).unwrap();
    flipped[storage] = 1;
    assert!(refusal(folder.path(), &flipped).contains("data/0 is missing or damaged"));
}

#[test]
fn a_misfit_names_its_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let mut dict = grown::zeros(81);
    dict.remove("loc.2.bias").unwrap();
    dict.insert("conf.5.bias".to_owned(), ("F32", vec![2, 162], vec![0; 2 * 162 * 4]));
    std::fs::write(&path, zip(&nvidia(&dict))).unwrap();
    let error = ModelFile::open(&path).unwrap_err();
    assert!(matches!(error, ModelError::Misfit { .. }));
    let text = error.to_string();
    assert!(text.contains("missing: loc.2.bias"), "{text}");
    assert!(text.contains("of another shape: conf.5.bias ([2, 162] instead of [324])"), "{text}");
}

/// `loc.0.bias` as given, beside another tensor of the network.
fn two(bias: Tensor) -> Py {
    let other = Tensor::new("FloatStorage", &[324], vec![0; 324 * 4]);
    Py::OrderedDict(vec![(text("loc.0.bias"), Py::Tensor(bias)), (text("conf.0.bias"), Py::Tensor(other))])
}

#[test]
fn a_tensor_stays_in_its_storage() {
    let folder = tempfile::tempdir().unwrap();
    let whole = bias();
    for (tensor, said) in [
        (Tensor { count: 17, ..whole.clone() }, "another size than stated"),
        (Tensor { count: 1 << 62, ..whole.clone() }, "another size than stated"),
        (Tensor { offset: 1, ..whole.clone() }, "reaches out of its storage"),
        (Tensor { strides: vec![2], ..whole.clone() }, "reaches out of its storage"),
        (Tensor { strides: vec![usize::MAX / 4], ..whole.clone() }, "reaches out of its storage"),
        // One number many times: a small file that asks for all memory.
        (Tensor { shape: vec![1 << 40], strides: vec![0], ..whole.clone() }, "reaches out of its storage"),
        (
            Tensor { shape: vec![1 << 32, 1 << 32], strides: vec![0, 0], ..whole.clone() },
            "reaches out of its storage",
        ),
        (Tensor { shape: vec![1; 9], strides: vec![1; 9], ..whole.clone() }, "a tensor of 9 axes"),
    ] {
        let text = refusal(folder.path(), &zip(&two(tensor)));
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn transposed_and_double_tensors_are_read_in_the_order_of_their_axes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let weights = mixed();
    grown::write(&path("same.safetensors"), &weights, &json!({}));
    let checkpoint = weights.iter().map(|(name, stored)| {
        let (_, shape, bytes) = stored;
        let stored = match shape.as_slice() {
            // Channels last in memory, as training may leave them.
            [out, channels, rows, columns] => {
                let mut turned = vec![0; bytes.len()];
                for (at, value) in bytes.chunks_exact(2).enumerate() {
                    let (place, o) = (at % (channels * rows * columns), at / (channels * rows * columns));
                    let (channel, cell) = (place / (rows * columns), place % (rows * columns));
                    let to = (o * rows * columns + cell) * channels + channel;
                    turned[2 * to..2 * to + 2].copy_from_slice(value);
                }
                let strides = vec![channels * rows * columns, 1, columns * channels, *channels];
                assert_eq!(strides[0] * out, bytes.len() / 2);
                Py::Tensor(Tensor { strides, ..Tensor::new("HalfStorage", shape, turned) })
            }
            // As double, from the second element of its storage on.
            _ => {
                let values = bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
                let storage = [9.0].into_iter().chain(values).flat_map(f64::to_le_bytes).collect();
                let tensor = Tensor::new("DoubleStorage", shape, storage);
                Py::Tensor(Tensor { offset: 1, count: tensor.count + 1, ..tensor })
            }
        };
        (text(name), stored)
    });
    std::fs::write(path("turned.pt"), zip(&Py::OrderedDict(checkpoint.collect()))).unwrap();
    let forward = |name: &str| {
        let dict = infer::weights::StateDict::read(&path(name)).unwrap();
        let network = ssd300::Ssd300::load(&dict, infer::Device::Cpu, Precision::Fp32, 1).unwrap();
        let raw = network.forward(&grown::picture("two"), &|| true).unwrap();
        (0..6).map(|scale| raw.cells(0, scale).to_vec()).collect::<Vec<_>>()
    };
    let expected = forward("same.safetensors");
    assert!(forward("turned.pt") == expected);
    // With scales for int8 it becomes safetensors of the same numbers.
    let calibrated = ModelFile::open(&path("turned.pt")).unwrap().with_scales(&Scales::default()).unwrap();
    std::fs::write(path("calibrated.safetensors"), calibrated).unwrap();
    assert!(forward("calibrated.safetensors") == expected);
}

#[test]
fn names_come_from_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let model = |beside: Vec<(Py, Py)>| {
        let tensors = grown::zeros(3).iter().map(|(name, stored)| (text(name), tensor(stored))).collect();
        let mut all = beside;
        all.push((text("model"), Py::OrderedDict(tensors)));
        std::fs::write(&path, zip(&Py::Dict(all))).unwrap();
        ModelFile::open(&path)
    };
    let names = Py::List(vec![text("cat"), text("dog")]);
    assert_eq!(model(vec![(text("names"), names)]).unwrap().names, ["cat", "dog"]);
    let map = |names: &[&str]| {
        let pairs = (0..).map(Py::Int).zip(names.iter().map(|name| text(name))).rev_pairs();
        vec![(text("label_map"), Py::Dict(pairs))]
    };
    assert_eq!(model(map(&["background", "hen", "egg"])).unwrap().names, ["hen", "egg"]);
    let unnamed = model(vec![]).unwrap_err().to_string();
    assert!(unnamed.contains("has 2 classes and does not name them"), "{unnamed}");
    let wrong = model(map(&["background", "hen"])).unwrap_err().to_string();
    assert!(wrong.contains("names 1 classes but has outputs for 2"), "{wrong}");
}

/// Pairs in the reverse order: a map's order says nothing.
trait RevPairs {
    fn rev_pairs(self) -> Vec<(Py, Py)>;
}

impl<I: Iterator<Item = (Py, Py)>> RevPairs for I {
    fn rev_pairs(self) -> Vec<(Py, Py)> {
        let mut pairs: Vec<_> = self.collect();
        pairs.reverse();
        pairs
    }
}

/// Damage of all kinds: an error or a model, never a panic, a hang or all of the memory.
#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let dict = Dict::from([
        ("loc.0.bias".to_owned(), ("F32", vec![16], vec![0; 64])),
        ("loc.1.bias".to_owned(), ("F16", vec![4, 6], vec![0; 48])),
    ]);
    let checkpoint = nvidia(&dict);
    let new = Pickled::new(&checkpoint, false);
    let old = old(&checkpoint);
    let mut random = grown::stream("damage");
    let mut next = move |below: usize| random.next().unwrap() as usize % below;
    let mut damage = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        for _ in 0..1 + next(4) {
            let at = next(bytes.len());
            match next(5) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes[at] = b"(.}])tRQbeusa0c\x80\x81\x85\x8a\x93hjqr\xff"[next(25)],
                2 => bytes[at] = next(256) as u8,
                3 => drop(bytes.remove(at)),
                _ => bytes.insert(at, next(256) as u8),
            }
        }
        if next(8) == 0 {
            bytes.truncate(next(bytes.len()));
        }
        bytes
    };
    for round in 0..500 {
        let (pickle, storages) = (damage(&new.pickle), new.storages.clone());
        let rezipped = Pickled::of(pickle, storages).zip();
        for bytes in [rezipped, damage(&new.zip()), damage(&old)] {
            std::fs::write(&path, bytes).unwrap();
            let text = ModelFile::open(&path).unwrap_err().to_string();
            assert!(!text.is_empty() && text.len() < 20_000, "round {round}: {text}");
        }
    }
}
