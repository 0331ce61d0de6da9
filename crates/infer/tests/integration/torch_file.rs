//! Writes files as `torch.save` does, in both its formats.

use std::collections::HashMap;
use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A Python object.
#[derive(Clone)]
pub enum Py {
    None,
    Int(i32),
    Float(f64),
    Text(String),
    List(Vec<Py>),
    Dict(Vec<(Py, Py)>),
    /// With a `_metadata`, as a state_dict has.
    OrderedDict(Vec<(Py, Py)>),
    Counter(Vec<(Py, Py)>),
    Tensor(Tensor),
    /// A pickle's opcodes, as they are.
    Opcodes(Vec<u8>),
}

/// A tensor with a storage of its own.
#[derive(Clone)]
pub struct Tensor {
    /// Such as `FloatStorage`.
    pub kind: &'static str,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
    pub offset: usize,
    /// Elements the storage is said to have.
    pub count: usize,
    pub storage: Vec<u8>,
}

impl Tensor {
    /// One whose numbers lie in order.
    pub fn new(kind: &'static str, shape: &[usize], storage: Vec<u8>) -> Self {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        let count = shape.iter().product();
        Self { kind, shape: shape.to_vec(), strides, offset: 0, count, storage }
    }
}

pub fn text(text: &str) -> Py {
    Py::Text(text.to_owned())
}

/// A pickle, and the storages it speaks of.
#[derive(Default)]
pub struct Pickled {
    pub pickle: Vec<u8>,
    pub storages: Vec<Vec<u8>>,
    old: bool,
    // What was said before, and is referred to.
    memo: HashMap<Vec<u8>, u32>,
}

impl Pickled {
    /// `old` is for the format of before PyTorch 1.6.
    pub fn new(object: &Py, old: bool) -> Self {
        let mut made = Self { old, ..Self::default() };
        made.pickle.extend_from_slice(b"\x80\x02");
        made.add(object);
        made.pickle.push(b'.');
        made
    }

    /// A pickle that was made elsewhere.
    pub fn of(pickle: Vec<u8>, storages: Vec<Vec<u8>>) -> Self {
        Self { pickle, storages, ..Self::default() }
    }

    fn atom(&mut self, bytes: Vec<u8>) {
        let known = self.memo.len() as u32;
        match self.memo.get(&bytes) {
            Some(at) if *at < 256 => self.pickle.extend_from_slice(&[b'h', *at as u8]),
            Some(at) => {
                self.pickle.push(b'j');
                self.pickle.extend_from_slice(&at.to_le_bytes());
            }
            None => {
                self.pickle.extend_from_slice(&bytes);
                self.pickle.push(b'r');
                self.pickle.extend_from_slice(&known.to_le_bytes());
                self.memo.insert(bytes, known);
            }
        }
    }

    fn text(&mut self, text: &str) {
        let mut bytes = vec![b'X'];
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        self.atom(bytes);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.atom(format!("c{module}\n{name}\n").into_bytes());
    }

    fn int(&mut self, value: usize) {
        match u16::try_from(value) {
            Ok(small) if small < 256 => self.pickle.extend_from_slice(&[b'K', small as u8]),
            Ok(small) => {
                self.pickle.push(b'M');
                self.pickle.extend_from_slice(&small.to_le_bytes());
            }
            Err(_) => {
                self.pickle.extend_from_slice(b"\x8a\x08");
                self.pickle.extend_from_slice(&(value as u64).to_le_bytes());
            }
        }
    }

    fn ints(&mut self, values: &[usize]) {
        self.pickle.push(b'(');
        values.iter().for_each(|value| self.int(*value));
        self.pickle.push(b't');
    }

    fn pairs(&mut self, pairs: &[(Py, Py)]) {
        self.pickle.push(b'(');
        for (key, value) in pairs {
            self.add(key);
            self.add(value);
        }
        self.pickle.push(b'u');
    }

    fn add(&mut self, object: &Py) {
        match object {
            Py::None => self.pickle.push(b'N'),
            Py::Int(value) => {
                self.pickle.push(b'J');
                self.pickle.extend_from_slice(&value.to_le_bytes());
            }
            Py::Float(value) => {
                self.pickle.push(b'G');
                self.pickle.extend_from_slice(&value.to_be_bytes());
            }
            Py::Text(text) => self.text(text),
            Py::List(items) => {
                self.pickle.extend_from_slice(b"](");
                items.iter().for_each(|item| self.add(item));
                self.pickle.push(b'e');
            }
            Py::Dict(pairs) => {
                self.pickle.push(b'}');
                self.pairs(pairs);
            }
            Py::OrderedDict(pairs) => {
                self.global("collections", "OrderedDict");
                self.pickle.extend_from_slice(b")R");
                self.pairs(pairs);
                self.pickle.push(b'}');
                self.text("_metadata");
                self.global("collections", "OrderedDict");
                self.pickle.extend_from_slice(b")Rsb");
            }
            Py::Counter(pairs) => {
                self.global("collections", "Counter");
                self.pickle.push(b'}');
                self.pairs(pairs);
                self.pickle.extend_from_slice(b"\x85R");
            }
            Py::Tensor(tensor) => {
                self.global("torch._utils", "_rebuild_tensor_v2");
                self.pickle.extend_from_slice(b"((");
                self.text("storage");
                self.global("torch", tensor.kind);
                let key = self.storages.len().to_string();
                self.text(&key);
                self.text("cpu");
                self.int(tensor.count);
                self.pickle.extend_from_slice(if self.old { b"NtQ" } else { b"tQ" });
                self.int(tensor.offset);
                self.ints(&tensor.shape);
                self.ints(&tensor.strides);
                self.pickle.push(0x89);
                self.global("collections", "OrderedDict");
                self.pickle.extend_from_slice(b")RtR");
                self.storages.push(tensor.storage.clone());
            }
            Py::Opcodes(bytes) => self.pickle.extend_from_slice(bytes),
        }
    }

    /// The file in today's format.
    pub fn zip(&self) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        let mut entry = |name: &str, bytes: &[u8]| {
            zip.start_file(format!("archive/{name}"), stored).unwrap();
            zip.write_all(bytes).unwrap();
        };
        entry("data.pkl", &self.pickle);
        entry("byteorder", b"little");
        for (key, storage) in self.storages.iter().enumerate() {
            entry(&format!("data/{key}"), storage);
        }
        entry("version", b"3\n");
        zip.finish().unwrap().into_inner()
    }

    /// The file in the old format.
    pub fn old(&self, counts: &[usize]) -> Vec<u8> {
        let mut file = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e".to_vec();
        file.extend_from_slice(b"\x80\x02M\xe9\x03.");
        file.extend(Self::new(&Py::Dict(vec![(text("protocol_version"), Py::Int(1001))]), true).pickle);
        file.extend_from_slice(&self.pickle);
        let keys = (0..self.storages.len()).map(|key| text(&key.to_string())).collect();
        file.extend(Self::new(&Py::List(keys), true).pickle);
        for (storage, count) in self.storages.iter().zip(counts) {
            file.extend_from_slice(&(*count as u64).to_le_bytes());
            file.extend_from_slice(storage);
        }
        file
    }
}
