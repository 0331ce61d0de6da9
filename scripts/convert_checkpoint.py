#!/usr/bin/env python3
"""Turn a PyTorch checkpoint of SSD300-ResNet50 (such as NVIDIA's published .pt) into Boxreel's safetensors.

usage: convert_checkpoint.py CHECKPOINT OUT.safetensors [--names NAMES.txt] [--fp32]
needs: torch, safetensors, numpy

Takes a bare state_dict or one nested under 'model' or 'state_dict', with or without the `module.` that
training on several GPUs puts before every name. Convolutions are stored as fp16 unless --fp32 is given.
NAMES.txt has one class name a line, without background. Otherwise the names are those the checkpoint keeps (a list
under 'names', or NVIDIA's 'label_map'); without any, the model must have COCO's 80.
Boxreel also reads such checkpoints as they are; what this makes is smaller and holds nothing but the weights.
Only tensors are read from the checkpoint: code hidden in a pickle is refused, not run.
"""
import argparse
import json
import sys

CHANNELS = [1024, 512, 512, 256, 256, 256]
BOXES = [4, 6, 6, 6, 4, 4]
MIDDLE = [256, 256, 128, 128, 128]
STAGES = [(4, 3, 64, 64), (5, 4, 256, 128), (6, 6, 512, 256)]  # child, blocks, channels in, in the middle


def architecture(classes):
    """Name and shape of every tensor, `classes` counting background."""
    shapes = {}

    def conv_norm(conv, norm, *shape):
        shapes[f"{conv}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = shape[:1]

    fe = "feature_extractor.feature_extractor"
    conv_norm(f"{fe}.0", f"{fe}.1", 64, 3, 7, 7)
    for child, blocks, given, middle in STAGES:
        for block in range(blocks):
            at = f"{fe}.{child}.{block}"
            conv_norm(f"{at}.conv1", f"{at}.bn1", middle, given if block == 0 else 4 * middle, 1, 1)
            conv_norm(f"{at}.conv2", f"{at}.bn2", middle, middle, 3, 3)
            conv_norm(f"{at}.conv3", f"{at}.bn3", 4 * middle, middle, 1, 1)
        conv_norm(f"{fe}.{child}.0.downsample.0", f"{fe}.{child}.0.downsample.1", 4 * middle, given, 1, 1)
    for i, middle in enumerate(MIDDLE):
        at = f"additional_blocks.{i}"
        conv_norm(f"{at}.0", f"{at}.1", middle, CHANNELS[i], 1, 1)
        conv_norm(f"{at}.3", f"{at}.4", CHANNELS[i + 1], middle, 3, 3)
    for i in range(6):
        for head, values in (("loc", 4), ("conf", classes)):
            shapes[f"{head}.{i}.weight"] = (values * BOXES[i], CHANNELS[i], 3, 3)
            shapes[f"{head}.{i}.bias"] = (values * BOXES[i],)
    return shapes


def names_in(checkpoint):
    """The classes' names that a checkpoint keeps, without background; None if it keeps none."""
    names, label_map = checkpoint.get("names"), checkpoint.get("label_map")
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return list(names)
    if isinstance(label_map, dict) and label_map.get(0) == "background" and set(label_map) == set(range(len(label_map))):
        return [label_map[i] for i in range(1, len(label_map))]
    return None


def state_dict(checkpoint, torch):
    """The dict of tensors in whatever the checkpoint wraps around it."""
    while isinstance(checkpoint, dict):
        if checkpoint and all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
            return {name.removeprefix("module."): value for name, value in checkpoint.items()}
        inner = next((checkpoint[key] for key in ("model", "state_dict") if key in checkpoint), None)
        if inner is None:
            raise SystemExit(
                "the checkpoint holds no state_dict: expected tensors, or them under 'model' or 'state_dict', and "
                f"found the keys {', '.join(map(repr, list(checkpoint)[:10]))}"
            )
        checkpoint = inner
    raise SystemExit(
        f"the checkpoint holds a {type(checkpoint).__name__} instead of a state_dict: save it again with "
        "torch.save(model.state_dict(), path)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="the .pt file")
    parser.add_argument("out", help="the .safetensors file to write")
    parser.add_argument("--names", help="class names, one a line, without background")
    parser.add_argument("--fp32", action="store_true", help="keep convolutions in fp32")
    arguments = parser.parse_args()
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as missing:
        raise SystemExit(f"{missing.name} is not installed: pip install torch safetensors numpy") from None

    try:
        checkpoint = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SystemExit(f"{arguments.checkpoint} can't be read: {error.strerror}") from None
    except Exception as error:  # torch raises whatever its unpicklers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SystemExit(f"{arguments.checkpoint} is no checkpoint that can be read safely: {reason}") from None

    tensors = state_dict(checkpoint, torch)
    if "conf.0.bias" not in tensors:
        raise SystemExit(
            f"{arguments.checkpoint} is no SSD300-ResNet50: conf.0.bias is missing, and with it perhaps all heads "
            f"(it holds {len(tensors)} tensors, the first is {next(iter(tensors))})"
        )
    classes = tensors["conf.0.bias"].numel() // BOXES[0]
    expected = architecture(classes)
    tensors = {name: value for name, value in tensors.items() if not name.endswith(".num_batches_tracked")}
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"unknown: {name}" for name in tensors if name not in expected]
    problems += [
        f"of another shape: {name} ({list(tensors[name].shape)} instead of {list(shape)})"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems += [
        f"not finite: {name}"
        for name in expected
        if name in tensors and not torch.isfinite(tensors[name]).all()
    ]
    if problems:
        raise SystemExit(f"{arguments.checkpoint} does not fit SSD300-ResNet50: " + "; ".join(problems))

    metadata = {"architecture": "ssd300-resnet50", "classes": str(classes)}
    names = names_in(checkpoint) if isinstance(checkpoint, dict) else None
    if arguments.names:
        with open(arguments.names, encoding="utf-8") as file:
            names = [line.strip() for line in file if line.strip()]
    if names is not None:
        if len(names) != classes - 1:
            source = arguments.names or arguments.checkpoint
            raise SystemExit(f"{source} has {len(names)} names for {classes - 1} classes")
        metadata["names"] = json.dumps(names)
    elif classes != 81:
        raise SystemExit(f"the model has {classes - 1} classes: say what they are with --names")

    half = torch.float32 if arguments.fp32 else torch.float16
    stored = {
        name: value.detach().to(half if value.dim() == 4 else torch.float32).contiguous()
        for name, value in tensors.items()
    }
    overflown = [name for name, value in stored.items() if not torch.isfinite(value).all()]
    if overflown:
        raise SystemExit("too large for fp16, use --fp32: " + ", ".join(overflown))
    save_file(stored, arguments.out, metadata)
    print(f"{arguments.out}: {len(stored)} tensors, {classes - 1} classes and background")


if __name__ == "__main__":
    sys.exit(main())
