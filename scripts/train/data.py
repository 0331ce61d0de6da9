"""COCO-style data, with pictures on which only some classes are labelled, and SSD's augmentation."""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from loss import match
from ssd300 import MEAN, SIDE, default_boxes


@dataclass
class Picture:
    id: int
    path: Path
    width: int
    height: int
    boxes: np.ndarray  # (n, 4): left, top, right, bottom in pixels
    classes: np.ndarray  # (n,): 1 and up
    ignored: np.ndarray  # (n,): crowds and difficult ones, neither object nor background
    labelled: np.ndarray  # (classes + 1,): whether a class is labelled here; background always is


@dataclass
class Data:
    pictures: list
    names: list
    category_ids: list  # of the classes, in order
    annotations: dict = field(repr=False)  # the file, for the metric


def read(path, images, wanted=None):
    """Reads a COCO instances file. `wanted` names the classes to learn; by default all, by their id.

    On a picture, all classes are labelled, unless the picture has a list `labelled_category_ids`, or its `source`
    begins with "voc" and the file's info has `labelled_categories_of_voc_images`.
    """
    with open(path) as file:
        annotations = json.load(file)
    categories = sorted(annotations["categories"], key=lambda category: category["id"])
    if wanted:
        by_name = {category["name"].lower(): category for category in categories}
        unknown = [name for name in wanted if name.lower() not in by_name]
        if unknown:
            raise SystemExit(f"{path} has no class {', '.join(unknown)}; it has {', '.join(sorted(by_name))}")
        categories = [by_name[name.lower()] for name in wanted]
    number = {category["id"]: i + 1 for i, category in enumerate(categories)}
    voc = annotations.get("info", {}).get("labelled_categories_of_voc_images")
    by_picture = {}
    for one in annotations["annotations"]:
        if one["category_id"] in number and min(one["bbox"][2:]) > 0:
            by_picture.setdefault(one["image_id"], []).append(one)
    pictures = []
    for image in annotations["images"]:
        found = by_picture.get(image["id"], [])
        boxes = np.array([one["bbox"] for one in found], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, [image["width"], image["height"]] * 2)
        ids = image.get("labelled_category_ids")
        if ids is None and str(image.get("source", "")).startswith("voc"):
            ids = voc
        labelled = np.ones(len(number) + 1, bool)
        if ids is not None:
            labelled[1:] = [category["id"] in ids for category in categories]
        pictures.append(
            Picture(
                image["id"], Path(images) / image["file_name"], image["width"], image["height"], boxes,
                np.array([number[one["category_id"]] for one in found], np.int64),
                np.array([bool(one.get("iscrowd")) for one in found], bool), labelled,
            )
        )  # fmt: skip
    missing = [picture.path for picture in pictures if not picture.path.is_file()]
    if missing:
        raise SystemExit(f"{len(missing)} of {len(pictures)} pictures of {path} are missing, the first is {missing[0]}")
    return Data(pictures, [category["name"] for category in categories], list(number), annotations)


def add_teacher(data, results, sure, doubtful=None):
    """Fills in, on partly labelled pictures, classes that are not labelled, from a teacher's detections (COCO results):
    those of at least `sure` become objects. With `doubtful`, a class of which the teacher sees nothing between the
    two scores counts as labelled on that picture, so that elsewhere in it the class is learnt as absent; without,
    every class that was not labelled stays so, but for the objects. Returns how many objects were added."""
    number = {category: i + 1 for i, category in enumerate(data.category_ids)}
    by_picture, added = {}, 0
    for one in results:
        if one["category_id"] in number:
            by_picture.setdefault(one["image_id"], []).append(one)
    for picture in data.pictures:
        if picture.labelled.all():
            continue
        found = by_picture.get(picture.id, [])
        found = [one for one in found if not picture.labelled[number[one["category_id"]]]]
        objects = [one for one in found if one["score"] >= sure]
        boxes = np.array([one["bbox"] for one in objects], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, [picture.width, picture.height] * 2)
        classes = np.array([number[one["category_id"]] for one in objects], np.int64)
        picture.boxes = np.concatenate([picture.boxes, boxes])
        picture.classes = np.concatenate([picture.classes, classes])
        picture.ignored = np.concatenate([picture.ignored, np.zeros(len(objects), bool)])
        if doubtful is not None:
            doubted = {number[one["category_id"]] for one in found if doubtful <= one["score"] < sure}
            picture.labelled = np.array([kind not in doubted for kind in range(len(picture.labelled))]) | picture.labelled
        added += len(objects)
    return added


def overlaps(region, boxes):
    """Intersection over union of one box with many."""
    both = (np.minimum(region[2:], boxes[:, 2:]) - np.maximum(region[:2], boxes[:, :2])).clip(0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return both / ((region[2:] - region[:2]).prod() + area - both + 1e-9)


def zoomed_out(region, random):
    """A region up to four times as wide and high, with the picture somewhere in it."""
    if random.random() < 0.5:
        return region
    size = region[2:] - region[:2]
    larger = size * random.uniform(1, 4)
    start = region[:2] - random.random(2) * (larger - size)
    return np.concatenate([start, start + larger])


def cropped(region, boxes, random):
    """SSD's crop: a part that some object overlaps by at least a drawn share; or all."""
    while True:
        least = random.choice([None, 0.1, 0.3, 0.5, 0.7, 0.9, -np.inf])
        if least is None or not len(boxes):
            return region
        size = region[2:] - region[:2]
        for _ in range(30):
            part = size * random.uniform(0.3, 1, 2)
            if not 0.5 <= (part[0] / size[0]) / (part[1] / size[1]) <= 2:
                continue
            start = region[:2] + random.random(2) * (size - part)
            candidate = np.concatenate([start, start + part])
            if overlaps(candidate, boxes).max() < least:
                continue
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            if ((centres > candidate[:2]) & (centres < candidate[2:])).all(1).any():
                return candidate


def coloured(image, random):
    """Brightness, contrast, saturation and hue, each at times, in either order."""
    def contrast(image):
        return ImageEnhance.Contrast(image).enhance(random.uniform(0.5, 1.5)) if random.random() < 0.5 else image

    if random.random() < 0.5:
        image = ImageEnhance.Brightness(image).enhance(random.uniform(0.875, 1.125))
    first = random.random() < 0.5
    image = contrast(image) if first else image
    if random.random() < 0.5:
        image = ImageEnhance.Color(image).enhance(random.uniform(0.5, 1.5))
    if random.random() < 0.5:
        hue, saturation, value = image.convert("HSV").split()
        turned = (np.asarray(hue, np.int16) + int(random.integers(-13, 14))) % 256
        hue = Image.fromarray(turned.astype(np.uint8))
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return image if first else contrast(image)


def view(image, region, method, side, random):
    """A region of a picture squashed to a square, its colours changed; what lies outside of the picture is of ImageNet's mean
    colour."""
    whole = np.array([0, 0, image.width, image.height], np.float64)
    inner = np.concatenate([np.maximum(region[:2], 0), np.minimum(region[2:], whole[2:])])
    scale = side / (region[2:] - region[:2])
    place = np.concatenate([(inner[:2] - region[:2]) * scale, (inner[2:] - region[:2]) * scale]).round().astype(int)
    place[2:] = np.maximum(place[2:], place[:2] + 1)
    part = image.resize(tuple(int(n) for n in place[2:] - place[:2]), method, box=tuple(float(v) for v in inner))
    part = coloured(part, random)
    if part.size == (side, side):
        return part
    canvas = Image.new("RGB", (side, side), tuple(round(255 * value) for value in MEAN))
    canvas.paste(part, (int(place[0]), int(place[1])))
    return canvas


def augmented(image, picture, random, whole_share=0.0, side=SIDE):
    """A picture as training sees it: bytes (side, side, 3), boxes as fractions, which boxes are left."""
    whole = np.array([0, 0, image.width, image.height], np.float64)
    scale = whole[2:] / [picture.width, picture.height]
    boxes = picture.boxes * np.concatenate([scale, scale])
    region = whole
    if random.random() >= whole_share:
        # A mosaic's quarter is zoomed out already.
        region = cropped(zoomed_out(whole, random) if side == SIDE else whole, boxes, random)
    method = random.choice([Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
    image = view(image, region, Image.Resampling(int(method)), side, random)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    left = ((centres > region[:2]) & (centres < region[2:])).all(1)
    size = region[2:] - region[:2]
    boxes = (boxes - np.tile(region[:2], 2)) / np.tile(size, 2)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
    # What became smaller than two pixels can't be learnt.
    boxes = boxes.clip(0, 1)
    left &= ((boxes[:, 2:] - boxes[:, :2]) * side >= 2).all(1)
    return np.array(image, np.uint8), boxes.astype(np.float32), left


class Augmented(torch.utils.data.Dataset):
    """Items are asked for by (epoch, place in it, number of the picture); the seed and the first two decide on every
    random choice: a run that was interrupted goes on exactly as it would have, however many workers there are. Gives the
    picture, what `match` says of its default boxes, and which classes are labelled.

    A share of the items are mosaics: the picture and three others, drawn by `weights`, each a quarter (YOLOv4,
    Bochkovskiy et al. 2020). Pictures labelled in part come together, and are labelled for what all four are."""

    def __init__(self, data, seed, whole_share=0.0, mosaic_share=0.0, weights=None):
        self.data, self.seed, self.whole_share, self.mosaic_share = data, seed, whole_share, mosaic_share
        self.defaults = default_boxes()
        weights = np.ones(len(data.pictures)) if weights is None else np.asarray(weights)
        whole = np.array([picture.labelled.all() for picture in data.pictures], bool)
        self.others = {kind: (np.flatnonzero(whole == kind), weights[whole == kind].cumsum()) for kind in (True, False)}

    def __len__(self):
        return len(self.data.pictures)

    def part(self, picture, random, side):
        with Image.open(picture.path) as image:
            pixels, boxes, left = augmented(image.convert("RGB"), picture, random, self.whole_share, side)
        return pixels, boxes[left], picture.classes[left], picture.ignored[left]

    def __getitem__(self, at):
        epoch, place, number = at
        picture = self.data.pictures[number]
        random = np.random.default_rng([self.seed, epoch, place])
        labelled = picture.labelled
        if random.random() < self.mosaic_share:
            numbers, ends = self.others[bool(labelled.all())]
            drawn = np.searchsorted(ends, random.random(3) * ends[-1], side="right").clip(max=len(ends) - 1)
            four = [picture] + [self.data.pictures[other] for other in numbers[drawn]]
            pixels, *objects = mosaic([self.part(one, random, SIDE // 2) for one in four])
            labelled = np.logical_and.reduce([one.labelled for one in four])
        else:
            pixels, *objects = self.part(picture, random, SIDE)
        target, wanted = match(*(torch.from_numpy(values) for values in objects), self.defaults)
        return pixels, target, wanted, labelled


def mosaic(parts):
    """Four views with their boxes, classes, and which are ignored, as one of twice the side."""
    pixels, boxes, classes, ignored = zip(*parts)
    rows = [np.concatenate(pixels[row : row + 2], axis=1) for row in (0, 2)]
    starts = [np.array([column, row, column, row], np.float32) for row in (0, 1) for column in (0, 1)]
    boxes = [(own + start) / 2 for own, start in zip(boxes, starts)]
    return np.concatenate(rows), *(np.concatenate(values) for values in (boxes, classes, ignored))


def repeats(data, threshold):
    """How often each picture should be seen, against others: a class that a share f of the pictures has counts
    max(1, sqrt(threshold / f)), a picture as its rarest class (repeat-factor sampling, LVIS, Gupta et al. 2019)."""
    kinds = [np.unique(picture.classes[~picture.ignored]) for picture in data.pictures]
    share = np.bincount(np.concatenate(kinds), minlength=len(data.names) + 1) / len(kinds)
    factor = np.sqrt(threshold / np.maximum(share, 1e-9)).clip(min=1)
    return [float(factor[classes].max(initial=1)) for classes in kinds]


class Batches(torch.utils.data.Sampler):
    """The batches of many epochs. An epoch has as many pictures as there are, each as often as its weight says (rounded
    up or down by chance; equal weights: once), in an order that seed and epoch decide."""

    def __init__(self, weights, batch, seed, epochs):
        self.weights, self.batch, self.seed, self.epochs = np.asarray(weights), batch, seed, epochs

    def __len__(self):
        return len(self.epochs) * (len(self.weights) // self.batch)

    def __iter__(self):
        count = len(self.weights)
        for epoch in self.epochs:
            random = np.random.default_rng([self.seed, epoch, 2**32])
            order = random.permutation(count)
            # Systematic sampling: one draw for all.
            ends = self.weights[order].cumsum()
            chosen = np.searchsorted(ends / ends[-1] * count, np.arange(count) + random.random(), side="right")
            order = random.permutation(order[chosen.clip(max=count - 1)]).tolist()
            for at in range(0, count - self.batch + 1, self.batch):
                yield [(epoch, place, order[place]) for place in range(at, at + self.batch)]


@lru_cache(maxsize=256)
def shares(size):
    """Along an axis: which share of each pixel goes into each of the 300 small ones. The mean of the area where there
    are more, linear between centres where there are fewer."""
    scale = size / SIDE
    pixels = np.arange(size)
    if scale < 1:
        centres = ((np.arange(SIDE) + 0.5) * scale - 0.5).clip(0, size - 1)
        return (1 - abs(centres[:, None] - pixels)).clip(0).astype(np.float32)
    start = (np.arange(SIDE) * scale)[:, None]
    covered = np.minimum(start + scale, pixels + 1) - np.maximum(start, pixels)
    return (covered.clip(0) / scale).astype(np.float32)


def squashed(image):
    """A whole picture as Boxreel shows it to the network: bytes (300, 300, 3)."""
    pixels = np.asarray(image, np.float32)
    high, wide = pixels.shape[:2]
    narrow = np.einsum("xw,hwc->hxc", shares(wide), pixels, optimize=True)
    small = np.einsum("yh,hxc->yxc", shares(high), narrow, optimize=True)
    return (small + 0.5).clip(0, 255).astype(np.uint8)


class Plain(torch.utils.data.Dataset):
    """Pictures as Boxreel sees them."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data.pictures)

    def __getitem__(self, number):
        with Image.open(self.data.pictures[number].path) as image:
            return squashed(image.convert("RGB")), number
