//! The part of Python's pickle format that `torch.save` writes tensors with.
//!
//! A pickle is a program for a small stack machine, and Python's own reader calls whatever the program names. Here
//! nothing is called: the few names that stand for tensors and plain containers are known and turned into
//! data, and any other name, and any opcode that would build an object, ends the reading.
//!
//! Values live in one list and refer to each other by number, so neither depth nor a circle can overflow the stack,
//! and memory is bounded by the length of the pickle.

use std::collections::HashMap;

use super::Dtype;

/// Longer pickles are refused: that of a checkpoint of this network, its optimizer's state included, takes a
/// few hundred kilobytes. A byte of pickle becomes at most some eighty bytes of memory.
pub(super) const MAX_BYTES: usize = 4 << 20;
/// The most axes a tensor may have.
const MAX_AXES: usize = 8;

/// Where a compound value lies in [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(usize);

/// A value; what does not matter here is `Other`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Int(i64),
    /// A number of more than 64 bits, little-endian.
    Long(&'a [u8]),
    Text(&'a str),
    /// A tuple or a list.
    Items(Id),
    Dict(Id),
    Storage(Id),
    Tensor(Id),
    Other,
    Name(Name),
}

/// A name that a pickle may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    OrderedDict,
    Counter,
    Size,
    Device,
    RebuildTensor,
    RebuildParameter,
    StorageOf(Dtype),
    /// Such as `torch.float16`.
    TensorType,
}

/// Numbers that several tensors may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    pub(super) dtype: Dtype,
    /// Elements.
    pub(super) count: usize,
}

/// A view on a storage, in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

enum Node<'a> {
    Items(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(Storage<'a>),
    Tensor(View<'a>),
}

/// What a pickle holds.
pub(super) struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    /// The value it is of.
    pub(super) root: Value<'a>,
    /// Bytes it took.
    pub(super) length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that `bytes` begin with.
    ///
    /// # Errors
    /// A phrase that says what it is that is no tensor, or that the pickle is damaged.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        Machine { rest: bytes, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), nodes: Vec::new() }
            .run(bytes.len())
    }

    /// A dict's keys and values, in order; a key may come twice, and then the later one counts.
    pub(super) fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match (value, self.node(value)) {
            (Value::Dict(_), Some(Node::Dict(pairs))) => Some(pairs),
            _ => None,
        }
    }

    /// What a dict holds under `key`.
    pub(super) fn get(&self, value: Value<'a>, key: &str) -> Option<Value<'a>> {
        let pairs = self.dict(value)?;
        pairs.iter().rev().find(|(name, _)| *name == Value::Text(key)).map(|(_, value)| *value)
    }

    /// The items of a tuple or list.
    pub(super) fn items(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.node(value) {
            Some(Node::Items(items)) => Some(items),
            _ => None,
        }
    }

    /// The tensor that a value is.
    pub(super) fn tensor(&self, value: Value<'a>) -> Option<&View<'a>> {
        match self.node(value) {
            Some(Node::Tensor(view)) => Some(view),
            _ => None,
        }
    }

    /// All storages that are spoken of.
    pub(super) fn storages(&self) -> impl Iterator<Item = Storage<'a>> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(*storage),
            Node::Items(_) | Node::Dict(_) | Node::Tensor(_) => None,
        })
    }

    fn node(&self, value: Value<'a>) -> Option<&Node<'a>> {
        match value {
            Value::Items(id) | Value::Dict(id) | Value::Storage(id) | Value::Tensor(id) => {
                self.nodes.get(id.0)
            }
            Value::Int(_) | Value::Long(_) | Value::Text(_) | Value::Other | Value::Name(_) => None,
        }
    }
}

struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value<'a>>,
    /// Heights of the stack that opcodes come back to.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    nodes: Vec<Node<'a>>,
}

fn cut() -> String {
    "its pickle is cut short".to_owned()
}

fn confused() -> String {
    "its pickle is damaged".to_owned()
}

impl<'a> Machine<'a> {
    fn run(mut self, length: usize) -> Result<Pickle<'a>, String> {
        loop {
            if length - self.rest.len() > MAX_BYTES {
                return Err("its pickle is longer than that of any such network".to_owned());
            }
            let [op] = self.take()?;
            match op {
                // PROTO, FRAME: nothing to know from them.
                0x80 => {
                    let [version] = self.take()?;
                    if version > 5 {
                        return Err(format!("its pickle is of version {version}, which is not known here"));
                    }
                }
                0x95 => drop(self.take::<8>()?),
                // STOP
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle { nodes: self.nodes, root, length: length - self.rest.len() });
                }
                // MARK, POP, POP_MARK
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.marked()?),
                // NONE, NEWTRUE, NEWFALSE
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Other),
                // BINFLOAT
                b'G' => {
                    self.take::<8>()?;
                    self.stack.push(Value::Other);
                }
                // BININT, BININT1, BININT2
                b'J' => {
                    let value = i32::from_le_bytes(self.take()?);
                    self.stack.push(Value::Int(value.into()));
                }
                b'K' => {
                    let [value] = self.take()?;
                    self.stack.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.take()?);
                    self.stack.push(Value::Int(value.into()));
                }
                // LONG1
                0x8a => {
                    let [length] = self.take()?;
                    let bytes = self.take_slice(length.into())?;
                    self.stack.push(long(bytes));
                }
                // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
                0x8c => {
                    let [length] = self.take()?;
                    self.text(length.into())?;
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.take()?);
                    self.text(length.into())?;
                }
                0x8d => {
                    let length = u64::from_le_bytes(self.take()?);
                    self.text(length)?;
                }
                // SHORT_BINSTRING, BINSTRING (Python 2), SHORT_BINBYTES, BINBYTES
                b'U' | b'C' => {
                    let [length] = self.take()?;
                    self.take_slice(length.into())?;
                    self.stack.push(Value::Other);
                }
                b'T' | b'B' => {
                    let length = u32::from_le_bytes(self.take()?);
                    self.take_slice(length.into())?;
                    self.stack.push(Value::Other);
                }
                // EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE
                b'}' => self.push_dict(),
                b']' | b')' => self.push_items(Vec::new()),
                // TUPLE, TUPLE1, TUPLE2, TUPLE3
                b't' => {
                    let items = self.marked()?;
                    self.push_items(items);
                }
                0x85..=0x87 => {
                    let from = self.stack.len().checked_sub(usize::from(op - 0x84)).ok_or_else(confused)?;
                    self.above_mark(from)?;
                    let items = self.stack.split_off(from);
                    self.push_items(items);
                }
                // APPEND, APPENDS
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(vec![item])?;
                }
                b'e' => {
                    let items = self.marked()?;
                    self.extend_list(items)?;
                }
                // SETITEM, SETITEMS
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.extend_dict(&[key, value])?;
                }
                b'u' => {
                    let items = self.marked()?;
                    self.extend_dict(&items)?;
                }
                // BINPUT, LONG_BINPUT, MEMOIZE
                b'q' => {
                    let [at] = self.take()?;
                    self.remember(at.into())?;
                }
                b'r' => {
                    let at = u32::from_le_bytes(self.take()?);
                    self.remember(at)?;
                }
                0x94 => {
                    let at = u32::try_from(self.memo.len()).map_err(|_| confused())?;
                    self.remember(at)?;
                }
                // BINGET, LONG_BINGET
                b'h' => {
                    let [at] = self.take()?;
                    self.recall(at.into())?;
                }
                b'j' => {
                    let at = u32::from_le_bytes(self.take()?);
                    self.recall(at)?;
                }
                // GLOBAL, STACK_GLOBAL
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Value::Name(known(module, name)?));
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (module, name) else {
                        return Err(confused());
                    };
                    self.stack.push(Value::Name(known(module, name)?));
                }
                // BINPERSID, REDUCE, BUILD
                b'Q' => self.storage()?,
                b'R' => self.reduce()?,
                b'b' => {
                    // An OrderedDict's attributes, such as a state_dict's `_metadata`.
                    self.pop()?;
                    let Some(Value::Dict(_)) = self.stack.last() else {
                        return Err("it holds an object that is no tensor".to_owned());
                    };
                }
                // INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, EXT2, EXT4, PERSID: objects by other ways.
                b'i' | b'o' | 0x81 | 0x92 | 0x82..=0x84 | b'P' => {
                    return Err("it holds an object that is no tensor".to_owned());
                }
                other => {
                    return Err(format!(
                        "its pickle has the opcode {other:#04x}, which torch.save does not write"
                    ));
                }
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(cut)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn take_slice(&mut self, length: u64) -> Result<&'a [u8], String> {
        let length = usize::try_from(length).map_err(|_| cut())?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(cut)?;
        self.rest = rest;
        Ok(taken)
    }

    fn text(&mut self, length: u64) -> Result<(), String> {
        let text = std::str::from_utf8(self.take_slice(length)?).map_err(|_| confused())?;
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(cut)?;
        let line = self.take_slice(end as u64)?;
        self.take::<1>()?;
        std::str::from_utf8(line).map_err(|_| confused())
    }

    /// The stack's top must not lie under a mark: opcodes come back for what is above it.
    fn above_mark(&self, height: usize) -> Result<(), String> {
        if self.marks.last().is_some_and(|mark| height < *mark) { Err(confused()) } else { Ok(()) }
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        let height = self.stack.len().checked_sub(1).ok_or_else(confused)?;
        self.above_mark(height)?;
        self.stack.pop().ok_or_else(confused)
    }

    fn marked(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len()).ok_or_else(confused)?;
        Ok(self.stack.split_off(mark))
    }

    fn push_items(&mut self, items: Vec<Value<'a>>) {
        self.stack.push(Value::Items(Id(self.nodes.len())));
        self.nodes.push(Node::Items(items));
    }

    fn push_dict(&mut self) {
        self.stack.push(Value::Dict(Id(self.nodes.len())));
        self.nodes.push(Node::Dict(Vec::new()));
    }

    fn extend_list(&mut self, items: Vec<Value<'a>>) -> Result<(), String> {
        let Some(Value::Items(id)) = self.stack.last() else { return Err(confused()) };
        let Some(Node::Items(list)) = self.nodes.get_mut(id.0) else { return Err(confused()) };
        list.extend(items);
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Value<'a>]) -> Result<(), String> {
        let (pairs, odd) = items.as_chunks::<2>();
        let Some(Value::Dict(id)) = self.stack.last() else { return Err(confused()) };
        let Some(Node::Dict(dict)) = self.nodes.get_mut(id.0) else { return Err(confused()) };
        if !odd.is_empty() {
            return Err(confused());
        }
        dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn remember(&mut self, at: u32) -> Result<(), String> {
        let top = *self.stack.last().ok_or_else(confused)?;
        self.memo.insert(at, top);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<(), String> {
        let value = *self.memo.get(&at).ok_or_else(confused)?;
        self.stack.push(value);
        Ok(())
    }

    fn node_items(&self, value: Value<'a>) -> Result<&[Value<'a>], String> {
        match value {
            Value::Items(id) => match self.nodes.get(id.0) {
                Some(Node::Items(items)) => Ok(items),
                _ => Err(confused()),
            },
            _ => Err(confused()),
        }
    }

    /// `("storage", type, key, device, count)`, and in files of the old format `None` as the sixth.
    fn storage(&mut self) -> Result<(), String> {
        let described = self.pop()?;
        let storage = match self.node_items(described)? {
            [
                Value::Text("storage"),
                Value::Name(Name::StorageOf(dtype)),
                Value::Text(key),
                _,
                Value::Int(count),
            ]
            | [
                Value::Text("storage"),
                Value::Name(Name::StorageOf(dtype)),
                Value::Text(key),
                _,
                Value::Int(count),
                Value::Other,
            ] => {
                let count = usize::try_from(*count).map_err(|_| confused())?;
                Storage { key, dtype: *dtype, count }
            }
            _ => return Err("it describes the storage of a tensor in a way not known here".to_owned()),
        };
        self.stack.push(Value::Storage(Id(self.nodes.len())));
        self.nodes.push(Node::Storage(storage));
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), String> {
        let arguments = self.pop()?;
        let Value::Name(name) = self.pop()? else { return Err(confused()) };
        let arguments = self.node_items(arguments)?;
        match (name, arguments) {
            (Name::OrderedDict, []) => self.push_dict(),
            // A dict that counts is a dict.
            (Name::Counter, [dict @ Value::Dict(_)]) => {
                let dict = *dict;
                self.stack.push(dict);
            }
            (Name::Size, [size @ Value::Items(_)]) => {
                let size = *size;
                self.stack.push(size);
            }
            (Name::Device, _) => self.stack.push(Value::Other),
            (Name::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => {
                let tensor = *tensor;
                self.stack.push(tensor);
            }
            (Name::RebuildTensor, [Value::Storage(id), Value::Int(offset), shape, strides, ..]) => {
                let Some(Node::Storage(storage)) = self.nodes.get(id.0) else { return Err(confused()) };
                let view = View {
                    storage: *storage,
                    offset: usize::try_from(*offset).map_err(|_| confused())?,
                    shape: self.sizes(*shape)?,
                    strides: self.sizes(*strides)?,
                };
                if view.shape.len() != view.strides.len() {
                    return Err(confused());
                }
                self.stack.push(Value::Tensor(Id(self.nodes.len())));
                self.nodes.push(Node::Tensor(view));
            }
            _ => return Err(confused()),
        }
        Ok(())
    }

    fn sizes(&self, value: Value<'a>) -> Result<Vec<usize>, String> {
        let items = self.node_items(value)?;
        if items.len() > MAX_AXES {
            return Err(format!("it holds a tensor of {} axes", items.len()));
        }
        let size = |item: &Value<'a>| match item {
            Value::Int(size) => usize::try_from(*size).map_err(|_| confused()),
            _ => Err(confused()),
        };
        items.iter().map(size).collect()
    }
}

/// A two's complement number of any length.
fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::Long(bytes);
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(all))
}

/// The meaning of a name; all that are not listed would be code to run.
fn known(module: &str, name: &str) -> Result<Name, String> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Name::OrderedDict,
        ("collections", "Counter") => Name::Counter,
        ("torch", "Size") => Name::Size,
        ("torch", "device") => Name::Device,
        ("torch._utils", "_rebuild_tensor_v2") => Name::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Name::RebuildParameter,
        ("torch", "FloatStorage") => Name::StorageOf(Dtype::F32),
        ("torch", "HalfStorage") => Name::StorageOf(Dtype::F16),
        ("torch", "BFloat16Storage") => Name::StorageOf(Dtype::Bf16),
        ("torch", "DoubleStorage") => Name::StorageOf(Dtype::F64),
        ("torch", "LongStorage") => Name::StorageOf(Dtype::I64),
        ("torch", "IntStorage") => Name::StorageOf(Dtype::I32),
        ("torch", "ShortStorage") => Name::StorageOf(Dtype::I16),
        ("torch", "CharStorage") => Name::StorageOf(Dtype::I8),
        ("torch", "ByteStorage") => Name::StorageOf(Dtype::U8),
        ("torch", "BoolStorage") => Name::StorageOf(Dtype::Bool),
        ("torch", "float16" | "float32" | "float64" | "bfloat16" | "int64" | "int32" | "uint8" | "bool") => {
            Name::TensorType
        }
        _ => {
            let spoken: String = format!("{module}.{name}").escape_debug().take(80).collect();
            return Err(format!(
                "it holds {spoken}, which is no tensor but code, and code in weights is not run; save the tensors \
                 alone, with torch.save(model.state_dict(), path)"
            ));
        }
    })
}
