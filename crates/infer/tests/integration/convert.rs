//! `scripts/convert_checkpoint.py`, where Python has torch.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use infer::ModelFile;

/// Runs a Python script; none where there is no Python with torch and safetensors.
fn python(arguments: &[&str]) -> Option<Output> {
    let has_torch = Command::new("python3").args(["-c", "import torch, safetensors, numpy"]).output();
    if !has_torch.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: python3 has no torch, safetensors and numpy");
        return None;
    }
    Some(Command::new("python3").args(arguments).output().unwrap())
}

/// Converts a checkpoint; none where there is no Python with torch and safetensors.
pub fn script(checkpoint: &Path, out: &Path) -> Option<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/convert_checkpoint.py");
    python(&[script.to_str()?, checkpoint.to_str()?, out.to_str()?])
}

/// Makes a checkpoint as training on several GPUs leaves it, lets `change` at it, and converts it.
fn convert(folder: &Path, change: &str) -> Option<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/convert_checkpoint.py");
    let (checkpoint, out) = (folder.join("model.pt"), folder.join("model.safetensors"));
    let make = format!(
        "import sys, torch; sys.dont_write_bytecode = True; sys.path.insert(0, {parent:?})\n\
         from convert_checkpoint import architecture\n\
         model = {{'module.' + name: torch.full(shape, 0.5) for name, shape in architecture(81).items()}}\n\
         model['module.additional_blocks.0.1.num_batches_tracked'] = torch.tensor(7)\n\
         {change}\n\
         torch.save({{'epoch': 3, 'model': model}}, {checkpoint:?})",
        parent = script.parent().unwrap(),
    );
    let made = python(&["-c", &make])?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    python(&[script.to_str().unwrap(), checkpoint.to_str().unwrap(), out.to_str().unwrap()])
}

#[test]
fn the_script_and_the_network_agree_on_the_tensors() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts");
    let print = format!(
        "import sys, json; sys.dont_write_bytecode = True; sys.path.insert(0, {scripts:?})\n\
         from convert_checkpoint import architecture; print(json.dumps(architecture(81)))"
    );
    let Ok(output) = Command::new("python3").args(["-c", &print]).output() else {
        eprintln!("skipped: there is no python3");
        return;
    };
    let theirs: BTreeMap<String, Vec<usize>> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(theirs, infer::ssd300::state_shapes(81).into_iter().collect());
}

#[test]
fn a_nested_and_prefixed_checkpoint_becomes_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let Some(output) = convert(folder.path(), "") else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let model = ModelFile::open(&folder.path().join("model.safetensors")).unwrap();
    assert_eq!(model.names.len(), 80);
    // As it is, too.
    assert_eq!(ModelFile::open(&folder.path().join("model.pt")).unwrap().names, model.names);
}

#[test]
fn a_checkpoint_that_names_its_classes_keeps_the_names() {
    let folder = tempfile::tempdir().unwrap();
    let change = "small = {n: torch.zeros(s) for n, s in architecture(3).items()}\n\
                  torch.save({'label_map': {1: 'hen', 0: 'background', 2: 'egg'}, 'model': small}, 'CHECKPOINT', \
                  _use_new_zipfile_serialization=False)\nsys.exit(0)"
        .replace("CHECKPOINT", folder.path().join("model.pt").to_str().unwrap());
    let Some(output) = convert(folder.path(), &change) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["model.safetensors", "model.pt"] {
        assert_eq!(ModelFile::open(&folder.path().join(name)).unwrap().names, ["hen", "egg"], "{name}");
    }
}

#[test]
fn what_is_missing_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let Some(output) = convert(folder.path(), "del model['module.loc.2.bias']") else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("missing: loc.2.bias"), "{text}");
    assert!(!folder.path().join("model.safetensors").exists());
}
