"""SSD300 with a ResNet50 backbone, under the tensor names that NVIDIA published and Boxreel reads."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SIDE = 300
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
CHANNELS = (1024, 512, 512, 256, 256, 256)
MIDDLE = (256, 256, 128, 128, 128)
BOXES = (4, 6, 6, 6, 4, 4)
# What the offsets are divided by: the centre's, and the size's.
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


class Bottleneck(nn.Module):
    def __init__(self, given, middle, stride, widen):
        super().__init__()
        self.conv1 = nn.Conv2d(given, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, 4 * middle, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * middle)
        self.downsample = None
        if widen:
            self.downsample = nn.Sequential(
                nn.Conv2d(given, 4 * middle, 1, stride, bias=False), nn.BatchNorm2d(4 * middle)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def stage(given, middle, blocks, stride):
    first = Bottleneck(given, middle, stride, True)
    return nn.Sequential(first, *(Bottleneck(4 * middle, middle, 1, False) for _ in range(blocks - 1)))


class Backbone(nn.Module):
    """ResNet50 up to conv4, whose first block keeps its stride at 1: 38x38 cells of 1024 channels."""

    def __init__(self):
        super().__init__()
        self.feature_extractor = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            stage(64, 64, 3, 1),
            stage(256, 128, 4, 2),
            stage(512, 256, 6, 1),
        )

    def forward(self, x):
        return self.feature_extractor(x)


class SSD300(nn.Module):
    """`classes` counts background, which is output 0. Gives offsets (n, 8732, 4) and logits (n, 8732, classes)."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.feature_extractor = Backbone()
        self.additional_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(given, middle, 1, bias=False),
                nn.BatchNorm2d(middle),
                nn.ReLU(),
                nn.Conv2d(middle, made, 3, stride=2 if i < 3 else 1, padding=1 if i < 3 else 0, bias=False),
                nn.BatchNorm2d(made),
                nn.ReLU(),
            )
            for i, (given, made, middle) in enumerate(zip(CHANNELS, CHANNELS[1:], MIDDLE))
        )
        self.loc = nn.ModuleList(nn.Conv2d(c, 4 * b, 3, padding=1) for c, b in zip(CHANNELS, BOXES))
        self.conf = nn.ModuleList(nn.Conv2d(c, classes * b, 3, padding=1) for c, b in zip(CHANNELS, BOXES))
        for module in (*self.additional_blocks, *self.loc, *self.conf):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for head, boxes in zip(self.conf, BOXES):
            # Background at 0.99 to begin with: thousands of boxes hold nothing.
            nn.init.zeros_(head.bias)
            with torch.no_grad():
                head.bias[:boxes] = math.log(99 * (classes - 1))

    def maps(self, x):
        """The six maps that the heads look at, the finest first, which is the backbone's."""
        maps = [x]
        for block in self.additional_blocks:
            maps.append(block(maps[-1]))
        return maps

    def everywhere(self, heads, maps):
        """What `self.loc` or `self.conf` say of all default boxes: (n, 8732, values)."""
        # The heads' channels are (value, kind of box): box by box in the end.
        said = [head(x) for head, x in zip(heads, maps)]
        return torch.cat([y.reshape(len(y), y.size(1) // boxes, -1) for y, boxes in zip(said, BOXES)], 2).transpose(1, 2)

    def forward(self, x):
        maps = self.maps(self.feature_extractor(x))
        return self.everywhere(self.loc, maps), self.everywhere(self.conf, maps)

    def at(self, maps, chosen):
        """Offsets (k, 4) and logits (k, classes) of `chosen` default boxes, (n, 8732), and of which picture and which default box
        each is. A training learns from some hundred boxes of thousands: the rest cost nothing on the way back."""
        found, start = [], 0
        for x, loc, conf, boxes in zip(maps, self.loc, self.conf, BOXES):
            count, channels, high, wide = x.shape
            cells = high * wide
            here = chosen[:, start : start + boxes * cells].reshape(count, boxes, cells).transpose(1, 2)
            picture, cell = here.any(2).nonzero(as_tuple=True)
            row, column = cell // wide, cell % wide
            around = torch.arange(3, device=x.device)
            rows, columns = row[:, None] + around.repeat_interleave(3), column[:, None] + around.repeat(3)
            patches = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)[picture[:, None], rows, columns].flatten(1)
            one, kind = here[picture, cell].nonzero(as_tuple=True)

            def said(head):
                weight = head.weight.permute(0, 2, 3, 1).reshape(-1, 9 * channels)
                return F.linear(patches, weight, head.bias).reshape(len(cell), head.out_channels // boxes, boxes)[one, :, kind]

            found.append((said(loc), said(conf), picture[one], start + kind * cells + cell[one]))
            start += boxes * cells
        return tuple(torch.cat(parts) for parts in zip(*found))

    def parts(self):
        """The backbone's parts from the input on, as `--freeze` counts them."""
        layers = self.feature_extractor.feature_extractor
        return [layers[:4], layers[4], layers[5], *layers[6]]


def default_boxes():
    """Centre and size, as fractions of the picture: (8732, 4), by map, kind of box, row, column."""
    cells, steps = (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300)
    sizes, ratios = (21, 45, 99, 153, 207, 261, 315), ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    boxes = []
    for i, side in enumerate(cells):
        size, following = sizes[i] / SIDE, sizes[i + 1] / SIDE
        kinds = [(size, size), (math.sqrt(size * following),) * 2]
        for ratio in ratios[i]:
            long, short = size * math.sqrt(ratio), size / math.sqrt(ratio)
            kinds += [(long, short), (short, long)]
        centres = (np.arange(side) + 0.5) * steps[i] / SIDE
        for w, h in kinds:
            boxes += [(x, y, w, h) for y in centres for x in centres]
    return torch.tensor(boxes, dtype=torch.float32).clamp(0, 1)


def corners(boxes):
    """Centre and size to left, top, right, bottom."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def encode(boxes, defaults):
    """Boxes (left, top, right, bottom) as offsets from default boxes."""
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-4)
    return torch.cat(
        [
            (centre - defaults[..., :2]) / defaults[..., 2:] / CENTRE_VARIANCE,
            (size / defaults[..., 2:]).log() / SIZE_VARIANCE,
        ],
        -1,
    )


def decode(offsets, defaults):
    """The inverse of `encode`."""
    centre = defaults[..., :2] + offsets[..., :2] * CENTRE_VARIANCE * defaults[..., 2:]
    size = defaults[..., 2:] * (offsets[..., 2:] * SIZE_VARIANCE).exp()
    return corners(torch.cat([centre, size], -1))


def normalised(pictures):
    """Pictures (n, 300, 300, 3) of bytes as the network's input."""
    x = pictures.permute(0, 3, 1, 2).float().div(255)
    shape = (1, 3, 1, 1)
    mean, deviation = torch.tensor(MEAN, device=x.device), torch.tensor(DEVIATION, device=x.device)
    x = (x - mean.reshape(shape)) / deviation.reshape(shape)
    return x.contiguous(memory_format=torch.channels_last)


def load_weights(model, path):
    """Takes what fits from a safetensors file or a checkpoint; returns the names of what does not."""
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        found = load_file(path)
    else:
        found = torch.load(path, map_location="cpu", weights_only=True)
        while not all(isinstance(value, torch.Tensor) for value in found.values()):
            found = found["model"] if "model" in found else found["state_dict"]
    found = {name.removeprefix("module."): value for name, value in found.items()}
    own = model.state_dict()
    fits = {name: value.to(own[name].dtype) for name, value in found.items()
            if name in own and own[name].shape == value.shape}
    model.load_state_dict(fits, strict=False)
    return [name for name in own if name not in fits and not name.endswith("num_batches_tracked")]
