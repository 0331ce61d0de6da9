#!/usr/bin/env python3
"""The way the job was done before Boxreel, as a yardstick: three programs' work, one after the other.

1. cut the video into JPEG files (OpenCV);
2. for each file: read, resize as floats, centre crop, one image through SSD300-ResNet50 in PyTorch's
   eager mode and fp32, suppress overlapping boxes class by class in Python, write a text file;
3. draw the boxes into copies of the JPEG files (OpenCV), then join the copies into an AVI.

It leaves src_frame/, txts/, tar_frame/ and target/ in the folder given, and prints one line of JSON with the
seconds of each step. Starting Python and importing PyTorch are not counted: the services ran for weeks.
"""

import argparse
import json
import pathlib
import time

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from skimage.io import imread
from skimage.transform import resize
from torch import nn

CLASSES = 81  # the first is background
SIDE = 300
MEAN = np.array([0.485, 0.456, 0.406])
DEVIATION = np.array([0.229, 0.224, 0.225])
# For each feature map: cells a side, pixels between cells, smallest box, and the shapes beside the squares.
GRIDS = [
    (38, 8, 21, (2,)),
    (19, 16, 45, (2, 3)),
    (10, 32, 99, (2, 3)),
    (5, 64, 153, (2, 3)),
    (3, 100, 207, (2,)),
    (1, 300, 261, (2,)),
]
NEXT_BOX = [45, 99, 153, 207, 261, 315]


class Bottleneck(nn.Module):
    """A residual block of ResNet50 (He et al. 2015), stride in its 3×3 convolution."""

    def __init__(self, inputs, width, stride, widen):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if widen:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + shortcut)


class Backbone(nn.Module):
    """ResNet50 up to its third group of blocks, which here keeps the resolution."""

    def __init__(self):
        super().__init__()
        groups, inputs = [], 64
        for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 1)):
            group = []
            for block in range(blocks):
                group.append(Bottleneck(inputs, width, stride if block == 0 else 1, block == 0))
                inputs = 4 * width
            groups.append(nn.Sequential(*group))
        stem = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        self.feature_extractor = nn.Sequential(*stem, *groups)

    def forward(self, x):
        return self.feature_extractor(x)


class Ssd300(nn.Module):
    """SSD300 (Liu et al. 2016) with the layer names of the published checkpoint."""

    def __init__(self):
        super().__init__()
        self.feature_extractor = Backbone()
        depths = [1024, 512, 512, 256, 256, 256]
        self.additional_blocks = nn.ModuleList()
        for k, width in enumerate((256, 256, 128, 128, 128)):
            stride, padding = (2, 1) if k < 3 else (1, 0)
            self.additional_blocks.append(
                nn.Sequential(
                    nn.Conv2d(depths[k], width, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, depths[k + 1], 3, stride, padding, bias=False),
                    nn.BatchNorm2d(depths[k + 1]),
                    nn.ReLU(),
                )
            )
        boxes = [2 + 2 * len(shapes) for *_, shapes in GRIDS]
        self.loc = nn.ModuleList(nn.Conv2d(d, 4 * n, 3, padding=1) for d, n in zip(depths, boxes))
        self.conf = nn.ModuleList(nn.Conv2d(d, CLASSES * n, 3, padding=1) for d, n in zip(depths, boxes))

    def forward(self, x):
        """Images (n, 3, 300, 300) to offsets (n, 4, 8732) and class scores before softmax (n, 81, 8732)."""
        x = self.feature_extractor(x)
        maps = [x]
        for block in self.additional_blocks:
            x = block(x)
            maps.append(x)
        offsets = [head(m).reshape(len(m), 4, -1) for head, m in zip(self.loc, maps)]
        scores = [head(m).reshape(len(m), CLASSES, -1) for head, m in zip(self.conf, maps)]
        return torch.cat(offsets, 2), torch.cat(scores, 2)


def default_boxes():
    """The 8732 default boxes as (centre x, centre y, width, height) in parts of the image."""
    boxes = []
    for (cells, step, small, shapes), large in zip(GRIDS, NEXT_BOX):
        small, between = small / SIDE, (small * large) ** 0.5 / SIDE
        sizes = [(small, small), (between, between)]
        for shape in shapes:
            long, short = small * shape**0.5, small / shape**0.5
            sizes += [(long, short), (short, long)]
        centres = (torch.arange(cells) + 0.5) * step / SIDE
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        for width, height in sizes:
            boxes.append(torch.stack([x, y, torch.full_like(x, width), torch.full_like(x, height)], -1).reshape(-1, 4))
    return torch.cat(boxes).clamp(0, 1)


def load_model(path):
    weights = {name: t.float() for name, t in load_file(path).items()}
    model = Ssd300()
    absent, unknown = model.load_state_dict(weights, strict=False)
    absent = [name for name in absent if not name.endswith("num_batches_tracked")]
    if absent or unknown:
        raise SystemExit(f"{path} is no SSD300-ResNet50: lacks {absent[:3]}, has unknown {unknown[:3]}")
    return model.eval()


def cut(video, frames_dir):
    """Writes every frame as a JPEG file; returns their number and the nominal frame rate."""
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise SystemExit(f"OpenCV cannot open {video}")
    count = 0
    while True:
        there, frame = capture.read()
        if not there:
            return count, capture.get(cv2.CAP_PROP_FPS)
        cv2.imwrite(str(frames_dir / f"frame_{count}.jpg"), frame)
        count += 1


def prepare(path):
    """One JPEG file as the network's input: short side to 300 as floats, the middle square, normalised."""
    picture = imread(path) / 255.0
    height, width = picture.shape[:2]
    scale = SIDE / min(height, width)
    picture = resize(picture, (max(SIDE, int(height * scale)), max(SIDE, int(width * scale))))
    top, left = (picture.shape[0] - SIDE) // 2, (picture.shape[1] - SIDE) // 2
    picture = (picture[top : top + SIDE, left : left + SIDE] - MEAN) / DEVIATION
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float().unsqueeze(0)


def overlaps(boxes, box):
    """Intersection over union of each of `boxes` with `box`, all as corners."""
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clamp(min=0).prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared)


def suppress(corners, scores, candidates=200, kept=20, least=0.3):
    """The best `kept` detections from `least` up, as (score, class from 0, corners)."""
    found = []
    for label in range(1, CLASSES):
        likely = scores[:, label] > 0.05
        if not likely.any():
            continue
        boxes, values = corners[likely], scores[likely, label]
        waiting = values.argsort(descending=True)[:candidates]
        while len(waiting):
            best = waiting[0]
            found.append((float(values[best]), label - 1, boxes[best].tolist()))
            waiting = waiting[overlaps(boxes[waiting], boxes[best]) < 0.5]
    found.sort(key=lambda detection: -detection[0])
    return [detection for detection in found[:kept] if detection[0] > least]


def detect(model, defaults, path):
    with torch.no_grad():
        offsets, scores = model(prepare(path))
    offsets, scores = offsets[0].T, scores[0].T.softmax(1)
    centres = offsets[:, :2] * 0.1 * defaults[:, 2:] + defaults[:, :2]
    halves = (offsets[:, 2:] * 0.2).exp() * defaults[:, 2:] / 2
    return suppress(torch.cat([centres - halves, centres + halves], 1), scores)


def write_text(path, detections):
    """Five lines a detection: the four corners in parts of the frame, then the class."""
    lines = [f"{value}\n" for _, label, corners in detections for value in (*corners, label)]
    path.write_text("".join(lines))


def draw(source, text, target):
    frame = cv2.imread(str(source))
    height, width = frame.shape[:2]
    lines = text.read_text().split()
    for k in range(0, len(lines), 5):
        left, top, right, bottom = (float(line) for line in lines[k : k + 4])
        start = (int(left * width), int(top * height))
        cv2.rectangle(frame, start, (int(right * width), int(bottom * height)), (0, 255, 0), 2)
        cv2.putText(frame, lines[k + 4], start, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 255, 0), 2)
    cv2.imwrite(str(target), frame)


def join(frames, target, rate):
    writer = None
    for path in frames:
        frame = cv2.imread(str(path))
        if writer is None:
            height, width = frame.shape[:2]
            writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"DIVX"), rate, (width, height))
        writer.write(frame)
    if writer is not None:
        writer.release()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=pathlib.Path)
    parser.add_argument("weights", type=pathlib.Path, help="SSD300-ResNet50 as safetensors")
    parser.add_argument("out", type=pathlib.Path, help="folder for everything written")
    arguments = parser.parse_args()
    sources, texts, drawn, target = (arguments.out / name for name in ("src_frame", "txts", "tar_frame", "target"))
    for folder in (sources, texts, drawn, target):
        folder.mkdir(parents=True, exist_ok=True)

    marks = [time.perf_counter()]
    count, rate = cut(arguments.video, sources)
    marks.append(time.perf_counter())

    model, defaults = load_model(arguments.weights), default_boxes()
    for k in range(count):
        write_text(texts / f"infer{k}.txt", detect(model, defaults, sources / f"frame_{k}.jpg"))
    marks.append(time.perf_counter())

    for k in range(count):
        draw(sources / f"frame_{k}.jpg", texts / f"infer{k}.txt", drawn / f"tar_{k}.jpg")
    join([drawn / f"tar_{k}.jpg" for k in range(count)], target / "target.avi", rate)
    marks.append(time.perf_counter())

    steps = {name: round(end - start, 3) for name, start, end in zip(("cut", "detect", "draw"), marks, marks[1:])}
    print(json.dumps({"frames": count, "seconds": round(marks[-1] - marks[0], 3), "steps": steps}))


if __name__ == "__main__":
    main()
