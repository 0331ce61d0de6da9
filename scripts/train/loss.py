"""SSD's loss: matching, hard negative mining, and what is not labelled left out."""

import torch
import torch.nn.functional as F

from ssd300 import corners, encode

# A default box belongs to the object that it overlaps by more than this.
MATCH = 0.5
# Negatives for each positive; and for a picture without any.
NEGATIVES, FEWEST = 3, 8


def overlap(a, b):
    """Intersection over union, (len(a), len(b)), and the share of each b that lies in a."""
    both = (torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])).clamp(min=0)
    both = both.prod(2)
    area = lambda boxes: (boxes[:, 2:] - boxes[:, :2]).prod(1)
    inside = both / area(b).clamp(min=1e-9)
    return both / (area(a)[:, None] + area(b)[None] - both).clamp(min=1e-9), inside


def match(boxes, classes, ignored, defaults):
    """For each default box its class (0: background, -1: neither) and the object's box."""
    target = torch.zeros(len(defaults), dtype=torch.long, device=defaults.device)
    matched = torch.zeros(len(defaults), 4, device=defaults.device)
    edges = corners(defaults)
    crowds, boxes, classes = boxes[ignored], boxes[~ignored], classes[~ignored]
    if len(crowds):
        shared, inside = overlap(crowds, edges)
        target[((shared > MATCH) | (inside > MATCH)).any(0)] = -1
    if len(boxes):
        shared, _ = overlap(boxes, edges)
        best, which = shared.max(0)
        # Every object gets the default box it overlaps most, the later one where two want the same.
        own = shared.argmax(1)
        for number, default in enumerate(own.tolist()):
            which[default], best[default] = number, 2.0
        positive = best > MATCH
        target[positive] = classes[which[positive]]
        matched[positive] = boxes[which[positive]]
    return target, matched


def known(logits, labelled, target):
    """Logits with the classes left out that are not labelled, so that a default box that may hold one of them is no
    evidence against it. Where an object of such a class is known all the same, as from a teacher, its default boxes learn it."""
    own = F.one_hot(target.clamp(min=0), logits.size(-1)).bool()
    return logits.float().masked_fill(~(labelled | own), -1e4)


@torch.no_grad()
def learnt_from(logits, target, labelled):
    """Which default boxes (n, 8732) the loss is of: those with an object, and of those with nothing the ones that look most
    like something. `target` is what `match` gives, stacked; `labelled` (n, classes) says which classes are labelled on each
    picture."""
    positive, nothing = target > 0, target == 0
    logits = known(logits, labelled[:, None], torch.zeros_like(target))
    hardness = (logits.logsumexp(2) - logits[..., 0]).masked_fill(~nothing, -1.0)
    rank = hardness.argsort(1, descending=True).argsort(1)
    count = (NEGATIVES * positive.sum(1, keepdim=True)).clamp(min=FEWEST)
    return positive | ((rank < count) & nothing)


def loss(offsets, logits, target, wanted, labelled, defaults):
    """The losses of place and kind, a positive, of the k default boxes (k, 4) that are learnt from: offsets (k, 4), logits
    (k, classes), what `match` gives for each, and which classes are labelled on its picture (k, classes)."""
    positive = target > 0
    found = positive.sum().clamp(min=1)
    aim = encode(wanted[positive], defaults[positive])
    place = F.smooth_l1_loss(offsets.float()[positive], aim, reduction="sum") / found
    return place, F.cross_entropy(known(logits, labelled, target), target, reduction="sum") / found
