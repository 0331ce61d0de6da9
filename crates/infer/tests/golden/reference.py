#!/usr/bin/env python3
"""SSD300-ResNet50 once more, in NumPy and double precision, written from the published description and
independent of the Rust code: what the golden test compares Boxreel's network with.

usage: reference.py [golden.json]
needs: numpy (nothing else)

Weights and pictures are not stored: both sides grow them from the names of the tensors (see `uniform`).
What is stored: sampled raw outputs and all detections of each picture. The script refuses to write a
result in which a decision (score over 0.05, overlap under the limit) hangs on less than MARGIN, because
fp32 could honestly decide it the other way.
"""
import json
import math
import os
import sys

import numpy as np

CLASSES = 81
CHANNELS = [1024, 512, 512, 256, 256, 256]
BOXES = [4, 6, 6, 6, 4, 4]
MIDDLE = [256, 256, 128, 128, 128]
STAGES = [(4, 3, 64, 1), (5, 4, 128, 2), (6, 6, 256, 1)]  # child, blocks, channels in the middle, stride
FE = "feature_extractor.feature_extractor"
MARGIN = 1e-5
PICTURES = [  # name, iou, max_det
    ("one", 0.5, 200),
    ("two", 0.35, 60),
]

# ---------------------------------------------------------------- numbers both sides can grow


def stream(name, count):
    """`count` 64-bit numbers: splitmix64, started at the FNV-1a hash of `name`."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = ((state ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(name, shape):
    """-1 <= v < 1, in steps of 2^-23."""
    bits = stream(name, math.prod(shape)) >> np.uint64(40)
    return (bits.astype(np.float64) * 2.0**-23 - 1.0).reshape(shape)


def grown(name, shape):
    """The tensor `name`, rounded to fp32 as a weights file would hold it."""
    v = uniform(name, shape)
    if len(shape) == 4:
        fan_in = shape[1] * shape[2] * shape[3]
        scale = {"loc": 0.2, "conf": 0.27}.get(name.split(".")[0], 1.0)
        v = v * (scale * math.sqrt(6.0 / fan_in))
    elif name.startswith("conf"):
        # Background comes first; each class has one bias for every kind of box.
        background = shape[0] // CLASSES
        v[:background] += BACKGROUND
    elif name.startswith("loc"):
        v = v * 0.1
    elif name.endswith("running_var"):
        v = 1.0 + 0.25 * v
    elif name.endswith(".weight"):
        v = 0.3 + 0.1 * v if ".bn3." in name else 1.0 + 0.2 * v
    else:
        v = v * 0.1
    return v.astype(np.float32).astype(np.float64)


BACKGROUND = 13.0


def picture(name):
    """300 x 300 x 3 bytes: coarse squares under fine noise."""
    coarse = (stream(f"picture.{name}.coarse", 30 * 30 * 3) >> np.uint64(56)).reshape(30, 30, 3)
    fine = (stream(f"picture.{name}.fine", 300 * 300 * 3) >> np.uint64(56)).reshape(300, 300, 3)
    coarse = coarse.repeat(10, axis=0).repeat(10, axis=1)
    return ((coarse * np.uint64(3) + fine) // np.uint64(4)).astype(np.uint8)


# ---------------------------------------------------------------- the network: maps are (channel, row, column)


def conv(x, w, bias=None, stride=1, padding=0):
    out, channels, size, _ = w.shape
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    rows, columns = windows.shape[1:3]
    flat = windows.transpose(0, 3, 4, 1, 2).reshape(channels * size * size, rows * columns)
    y = w.reshape(out, -1) @ flat
    if bias is not None:
        y = y + bias[:, None]
    return y.reshape(out, rows, columns)


def norm(x, name):
    gamma, beta, mean, variance = (
        grown(f"{name}.{part}", (x.shape[0],)) for part in ("weight", "bias", "running_mean", "running_var")
    )
    column = lambda v: v[:, None, None]
    return (x - column(mean)) / np.sqrt(column(variance) + 1e-5) * column(gamma) + column(beta)


def relu(x):
    return np.maximum(x, 0)


def conv_norm(x, at, bn, outputs, size=1, stride=1, padding=0):
    return norm(conv(x, grown(f"{at}.weight", (outputs, x.shape[0], size, size)), None, stride, padding), bn)


def maxpool(x):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(3, 4))


def bottleneck(x, at, middle, stride, first):
    y = relu(conv_norm(x, f"{at}.conv1", f"{at}.bn1", middle))
    y = relu(conv_norm(y, f"{at}.conv2", f"{at}.bn2", middle, 3, stride, 1))
    y = conv_norm(y, f"{at}.conv3", f"{at}.bn3", 4 * middle)
    if first:
        x = conv_norm(x, f"{at}.downsample.0", f"{at}.downsample.1", 4 * middle, 1, stride)
    return relu(x + y)


def network(pixels):
    """Raw heads under the published layout: loc (4, 8732), conf (81, 8732)."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = ((pixels / 255.0 - mean) / deviation).transpose(2, 0, 1)
    x = maxpool(relu(conv_norm(x, f"{FE}.0", f"{FE}.1", 64, 7, 2, 3)))
    for child, blocks, middle, stride in STAGES:
        for block in range(blocks):
            x = bottleneck(x, f"{FE}.{child}.{block}", middle, stride if block == 0 else 1, block == 0)
    maps = [x]
    for i, middle in enumerate(MIDDLE):
        at = f"additional_blocks.{i}"
        stride, padding = (2, 1) if i < 3 else (1, 0)
        x = relu(conv_norm(x, f"{at}.0", f"{at}.1", middle))
        x = relu(conv_norm(x, f"{at}.3", f"{at}.4", CHANNELS[i + 1], 3, stride, padding))
        maps.append(x)
    loc, conf = [], []
    for i, x in enumerate(maps):
        for head, values, parts in (("loc", 4, loc), ("conf", CLASSES, conf)):
            outputs = values * BOXES[i]
            w = grown(f"{head}.{i}.weight", (outputs, CHANNELS[i], 3, 3))
            parts.append(conv(x, w, grown(f"{head}.{i}.bias", (outputs,)), 1, 1).reshape(values, -1))
    return np.concatenate(loc, 1), np.concatenate(conf, 1)


# ---------------------------------------------------------------- boxes


def default_boxes():
    sizes, steps = [21, 45, 99, 153, 207, 261, 315], [8, 16, 32, 64, 100, 300]
    cells, ratios = [38, 19, 10, 5, 3, 1], [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
    boxes = []
    for k in range(6):
        small, large = sizes[k] / 300, sizes[k + 1] / 300
        kinds = [(small, small), (math.sqrt(small * large),) * 2]
        for r in ratios[k]:
            kinds += [(small * math.sqrt(r), small / math.sqrt(r)), (small / math.sqrt(r), small * math.sqrt(r))]
        for w, h in kinds:
            for row in range(cells[k]):
                for column in range(cells[k]):
                    boxes.append([(column + 0.5) * steps[k] / 300, (row + 0.5) * steps[k] / 300, w, h])
    return np.clip(np.array(boxes), 0, 1)


def decode(loc, conf):
    d = default_boxes()
    centre = d[:, :2] + 0.1 * loc[:2].T * d[:, 2:]
    size = d[:, 2:] * np.exp(0.2 * loc[2:].T)
    e = np.exp(conf - conf.max(axis=0))
    return np.concatenate([centre - size / 2, centre + size / 2], 1), (e / e.sum(axis=0)).T


def overlap(one, many):
    sides = np.minimum(one[2:], many[:, 2:]) - np.maximum(one[:2], many[:, :2])
    both = np.clip(sides, 0, None).prod(1)
    area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    return both / (area(one) + area(many) - both)


def detections(boxes, scores, iou, max_det):
    if np.abs(scores[:, 1:] - 0.05).min() < MARGIN:
        raise SystemExit("a score lies too near 0.05: name the picture otherwise")
    found = []
    for c in range(1, CLASSES):
        left = [int(i) for i in np.argsort(-scores[:, c], kind="stable") if scores[i, c] > 0.05][:200]
        while left:
            best, rest = left[0], left[1:]
            found.append((float(scores[best, c]), c - 1, best))
            o = overlap(boxes[best], boxes[rest])
            if len(o) and np.abs(o - iou).min() < MARGIN:
                raise SystemExit("an overlap lies too near the limit: name the picture otherwise")
            left = [i for i, v in zip(rest, o) if v < iou]
    found.sort(key=lambda f: (-f[0], f[1], f[2]))
    if len(found) > max_det and found[max_det - 1][0] - found[max_det][0] < MARGIN:
        raise SystemExit("the last two scores lie too near: name the picture otherwise")
    print(f"  {len(found)} kept, at most {max_det} wanted; scores {found[0][0]:.3f} to {found[-1][0]:.3f}")
    return found[:max_det]


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.json")
    pictures = []
    for name, iou, max_det in PICTURES:
        loc, conf = network(picture(name))
        print(f"{name}: loc deviates by {loc.std():.3f}, conf by {conf[1:].std():.3f}, largest {np.abs(conf).max():.2f}")
        boxes, scores = decode(loc, conf)
        print(f"  {(scores[:, 1:] > 0.05).sum()} scores over 0.05")
        samples = []
        for index in sorted({*range(0, 8732, 61), *range(8700, 8732)}):
            classes = [0, *(int(c) for c in stream(f"sample.{name}.{index}", 4) % np.uint64(CLASSES))]
            samples.append(
                {
                    "box": index,
                    "loc": [round(float(v), 7) for v in loc[:, index]],
                    "classes": classes,
                    "conf": [round(float(v), 7) for v in conf[classes, index]],
                }
            )
        found = detections(boxes, scores, iou, max_det)
        pictures.append(
            {
                "name": name,
                "iou": iou,
                "max_det": max_det,
                "largest_loc": float(np.abs(loc).max()),
                "largest_conf": float(np.abs(conf).max()),
                "samples": samples,
                "detections": [
                    {
                        "class": c,
                        "score": round(score, 8),
                        "box": [round(float(v), 8) for v in np.clip(boxes[index], 0, 1)],
                    }
                    for score, c, index in found
                ],
            }
        )
    with open(out, "w") as f:
        lines = ",\n".join(json.dumps(p, separators=(",", ":")) for p in pictures)
        f.write(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
