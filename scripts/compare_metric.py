#!/usr/bin/env python3
"""Hold `boxreel eval` to pycocotools, the reference of COCO's metric.

usage: compare_metric.py check ANNOTATIONS.json RESULTS.json EVAL.json [--limit N]
           RESULTS.json is what `boxreel eval --out` wrote, EVAL.json what `boxreel eval --json` printed. Prints both
           columns; ends with 1 when any figure differs by more than 1e-4.
       compare_metric.py make CASE.json
           Writes the synthetic case of crates/boxreel/tests/metric: annotations, results, pycocotools' figures.
needs: pycocotools, numpy
"""
import argparse
import contextlib
import io
import json
import sys

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def figures(annotations, results, limit=None):
    """pycocotools' figures, named as `boxreel eval --json` names them."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        if limit:
            evaluation.params.imgIds = sorted(truth.getImgIds())[:limit]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, ap75 = (float(value) for value in evaluation.stats[:3])
    # threshold, recall, class, area (0 is all), most detections a picture (the last is 100)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]

    def mean(values):
        values = values[values > -1]
        return float(values.mean()) if values.size else None

    classes = {
        int(category): (mean(precision[:, :, k]), mean(precision[0, :, k]))
        for k, category in enumerate(evaluation.params.catIds)
    }
    classes = {category: both for category, both in classes.items() if both[0] is not None}
    return {"ap": ap, "ap50": ap50, "ap75": ap75, "ar": float(evaluation.stats[8]), "classes": classes}


def check(annotations, results, ours, limit):
    with open(annotations) as file:
        annotations = json.load(file)
    with open(ours) as file:
        ours = json.load(file)
    theirs = figures(annotations, results, limit)
    pairs = {name: (ours[name], theirs[name]) for name in ("ap", "ap50", "ap75", "ar")}
    mine = {one["category_id"]: one for one in ours["classes"]}
    for category in sorted(mine.keys() | theirs["classes"].keys()):
        name = mine[category]["name"] if category in mine else category
        for i, figure in enumerate(("ap", "ap50")):
            pairs[f"{name} {figure}"] = (
                mine[category][figure] if category in mine else None,
                theirs["classes"].get(category, (None, None))[i],
            )
    worst = 0.0
    for name, (a, b) in pairs.items():
        difference = abs(a - b) if a is not None and b is not None else (0.0 if a == b else float("inf"))
        worst = max(worst, difference)
        if name in ("ap", "ap50", "ap75", "ar") or difference > 1e-4:
            print(f"{name:>24}  boxreel {a}  pycocotools {b}")
    print(f"{len(pairs)} figures, the largest difference is {worst:.1e}")
    return 0 if worst <= 1e-4 else 1


def make(path):
    """A case with what the metric treats apart: crowds, sizes, misses, doubles, wrong classes, ties, a class
    without objects, pictures without objects, more than 100 detections in one picture."""
    random = np.random.default_rng(7)
    categories = [{"id": i, "name": name} for i, name in [(1, "person"), (3, "car"), (18, "dog"), (90, "toothbrush")]]
    images = [{"id": i, "file_name": f"{i}.png", "width": 400, "height": 300} for i in range(1, 13)]
    annotations, results = [], []

    def box():
        w, h = np.exp(random.uniform(np.log(8), np.log(200), 2))
        return [random.uniform(0, 400 - w), random.uniform(0, 300 - h), w, h]

    def rounded(values):
        return [round(float(value), 2) for value in values]

    def found(image, category, bbox, score):
        results.append({"image_id": image, "category_id": category, "bbox": rounded(bbox), "score": round(float(score), 3)})

    for image in images[:-2]:
        for _ in range(random.integers(1, 9)):
            category = int(random.choice([1, 1, 1, 3, 18]))
            bbox = box()
            crowd = int(random.random() < 0.08)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "bbox": rounded(bbox),
                 "area": round(float(bbox[2] * bbox[3] * random.uniform(0.5, 1)), 2), "iscrowd": crowd}
            )
            for _ in range(random.integers(0, 3) + 3 * crowd):
                near = np.array(bbox) + random.normal(0, 0.06, 4) * np.array([bbox[2], bbox[3], bbox[2], bbox[3]])
                near[2:] = near[2:].clip(2)
                wrong = random.random() < 0.1
                found(image["id"], 3 if wrong else category, near, round(random.beta(4, 2), 1 if random.random() < 0.3 else 3))
    for image in images:
        for _ in range(random.integers(0, 6)):
            found(image["id"], int(random.choice([1, 3, 18, 90])), box(), random.beta(2, 4))
    for _ in range(130):
        found(3, 1, box(), random.uniform(0.05, 0.3))
    annotated = {"images": images, "categories": categories, "annotations": annotations}
    expected = figures(annotated, results)
    expected["classes"] = [(category, *both) for category, both in expected["classes"].items()]
    with open(path, "w") as file:
        json.dump({"annotations": annotated, "results": results, "expected": expected}, file, separators=(",", ":"))
        file.write("\n")
    print(f"{path}: {len(annotations)} objects, {len(results)} detections, {expected}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check")
    for name in ("annotations", "results", "eval"):
        checking.add_argument(name)
    checking.add_argument("--limit", type=int)
    commands.add_parser("make").add_argument("case")
    arguments = parser.parse_args()
    if arguments.command == "make":
        return make(arguments.case)
    return check(arguments.annotations, arguments.results, arguments.eval, arguments.limit)


if __name__ == "__main__":
    sys.exit(main())
