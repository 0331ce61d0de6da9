"""COCO's metric of a network in training. `boxreel eval` is the measure that counts; this one saves the best."""

import contextlib
import io

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import Plain
from ssd300 import decode, normalised

# As Boxreel has them.
LEAST, CANDIDATES, OVERLAP, MOST = 0.05, 200, 0.5, 200


def suppressed(boxes, scores):
    """Greedy suppression within a class: which are kept, best first."""
    order = scores.argsort()[::-1][:CANDIDATES]
    kept = []
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        both = np.minimum(boxes[first, 2:], boxes[order, 2:]) - np.maximum(boxes[first, :2], boxes[order, :2])
        both = both.clip(0).prod(1)
        order = order[both / (area[first] + area[order] - both) < OVERLAP]
    return kept


def detections(boxes, probabilities):
    """(class from 1, score, box) of one picture, best first."""
    found = []
    for kind in np.unique(np.nonzero(probabilities > LEAST)[1]):
        chosen = probabilities[:, kind] > LEAST
        scores, places = probabilities[chosen, kind], boxes[chosen]
        found += [(int(kind) + 1, float(scores[i]), places[i].clip(0, 1)) for i in suppressed(places, scores)]
    found.sort(key=lambda one: -one[1])
    return found[:MOST]


@torch.no_grad()
def measure(model, data, defaults, device, batch, workers, autocast):
    """AP and AP50 on `data`, whose pictures should be labelled for all classes: others would count as false."""
    model.eval()
    results = []
    loader = torch.utils.data.DataLoader(Plain(data), batch_size=batch, num_workers=workers)
    for pixels, numbers in loader:
        with autocast():
            offsets, logits = model(normalised(pixels.to(device)))
        boxes = decode(offsets.float(), defaults).cpu().numpy()
        probabilities = logits.float().softmax(2)[:, :, 1:].cpu().numpy()
        for number, box, probability in zip(numbers.tolist(), boxes, probabilities):
            picture = data.pictures[number]
            scale = np.array([picture.width, picture.height] * 2)
            for kind, score, place in detections(box, probability):
                x0, y0, x1, y1 = (float(value) for value in place * scale)
                results.append(
                    {"image_id": picture.id, "category_id": data.category_ids[kind - 1], "score": score,
                     "bbox": [x0, y0, x1 - x0, y1 - y0]}
                )  # fmt: skip
    if not results:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data.annotations
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.catIds = sorted(data.category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])
