#!/usr/bin/env python3
"""Train SSD300-ResNet50 on COCO-style data, for Boxreel. README.md beside this file has the commands."""

import argparse
import contextlib
import copy
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import convert_checkpoint
import data as pictures
from loss import learnt_from, loss
from measure import measure
from ssd300 import SSD300, default_boxes, load_weights, normalised


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--images", required=True, help="folder of the training pictures")
    add("--annotations", required=True, help="COCO instances file (JSON) of them")
    add("--val-images", help="folder of the pictures to measure on")
    add("--val-annotations", help="COCO instances file of those")
    add("--classes", help="classes to learn, by name, separated by commas; default: all of the annotations")
    add("--teacher", help="detections (COCO results) for classes that are not labelled on a picture")
    add("--teacher-sure", type=float, default=0.5, help="detections of at least this score become objects")
    add("--teacher-doubtful", type=float, help="if given: a class of which the teacher sees nothing between this score and "
        "the sure one counts as labelled on that picture")
    add("--init", help="weights to start from: safetensors, or a checkpoint; what does not fit starts at random")
    add("--freeze", type=int, default=1, help="parts of the backbone that are not trained: 0 none, 1 stem, 2 and 3 the "
        "stages after, 4 to 9 the last stage's blocks")
    add("--frozen", choices=["like", "int8"], default="like", help="how the frozen parts are computed: like the rest, or in "
        "int8, which is several times as fast on a processor; there, hard negatives are looked for in int8, too")
    add("--out", default="runs/train", help="folder for checkpoints and the exported weights")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--epochs", type=int, default=60)
    add("--steps", type=int, help="end after so many steps, whatever the epochs: for a trial")
    add("--batch", type=int, default=32)
    add("--optimizer", choices=["sgd", "adamw"], default="sgd", help="sgd for long trainings, adamw for short ones")
    add("--rate", type=float, default=0.0026, help="learning rate at its highest, for a batch of 32; scaled with the batch")
    add("--backbone-rate", type=float, default=1.0, help="share of the rate that the backbone learns at")
    add("--norms", choices=["learn", "keep"], default="learn", help="keep: BatchNorm goes on with the statistics it starts "
        "with, as small batches need")
    add("--whole", type=float, default=0.0, help="share of the pictures that are seen whole, neither zoomed nor cropped")
    add("--mosaic", type=float, default=0.0, help="share of the pictures that are seen with three others, a quarter each")
    add("--balance", type=float, help="pictures with a class that less than this share of the pictures has are seen more often")
    add("--warm-up", type=int, default=500, help="steps over which the rate rises")
    add("--decay", type=float, default=0.0005, help="weight decay of the convolutions")
    add("--ema", type=float, default=0.9995, help="decay of the averaged weights, which are measured and exported")
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="auto: bf16 on a GPU, else fp32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--workers", type=int, default=8, help="processes that read pictures")
    add("--measure-every", type=int, default=5, help="epochs between measurements")
    add("--limit", type=int, help="only the first N pictures: for a trial")
    add("--seed", type=int, default=1)
    return parser.parse_args()


class Average:
    """The exponential average of a network's weights; quick at first, so that it does not remember the start."""

    def __init__(self, model, decay):
        self.model, self.decay, self.updates = copy.deepcopy(model).eval(), decay, 0
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, model):
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values()))
        # All at once: one by one, hundreds of small tensors would take longer than the network.
        floating = [(own, theirs) for own, theirs in pairs if own.is_floating_point()]
        torch._foreach_lerp_([own for own, _ in floating], [theirs for _, theirs in floating], 1 - decay)
        for own, theirs in pairs:
            if not own.is_floating_point():
                own.copy_(theirs)


def trained(model, freeze, norms):
    """Freezes the first parts; their batch normalisation, too, keeps its statistics, as all of it does if `norms` is
    "keep"."""
    parts = model.parts()[:freeze]
    for part in parts:
        for parameter in part.parameters():
            parameter.requires_grad_(False)

    def mode():
        model.train()
        fixed = parts if norms == "learn" else [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for part in fixed:
            part.eval()

    return mode


def quantised(module, inputs):
    """A part of the network as a function that computes in int8, on a processor; `inputs` show it how large values become."""
    module = prepare_fx(copy.deepcopy(module).eval(), get_default_qconfig_mapping("onednn"), (inputs[0],))
    with torch.no_grad():
        for x in inputs:
            module(x)
    module = convert_fx(module)
    return lambda x: module(x.float())


def groups(model, highest, options):
    """What is learnt: convolutions with weight decay, the rest without; the backbone apart, for its own rate."""
    backbone = {id(parameter) for parameter in model.feature_extractor.parameters()}
    found = []
    for own, rate in ((True, highest * options.backbone_rate), (False, highest)):
        learnt = [p for p in model.parameters() if p.requires_grad and (id(p) in backbone) == own]
        found.append({"params": [p for p in learnt if p.dim() > 1], "weight_decay": options.decay, "highest": rate})
        found.append({"params": [p for p in learnt if p.dim() <= 1], "weight_decay": 0.0, "highest": rate})
    return found


def rate_at(step, steps, warm_up):
    """Share of the highest rate: a straight rise, then half a cosine down to a hundredth."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def publish(content, path):
    """Writes a checkpoint whole or not at all."""
    aside = path.with_suffix(".tmp")
    torch.save(content, aside)
    aside.replace(path)


def main():
    options = arguments()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    if options.frozen == "int8" and device.type != "cpu":
        raise SystemExit("--frozen int8 is for a processor; leave it out on a GPU")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)

    wanted = [name.strip() for name in options.classes.split(",")] if options.classes else None
    train = pictures.read(options.annotations, options.images, wanted)
    train.pictures = train.pictures[: options.limit]
    if len(train.pictures) < options.batch:
        raise SystemExit(f"{len(train.pictures)} pictures do not fill a batch of {options.batch}")
    val = None
    if options.val_annotations:
        if not options.val_images:
            raise SystemExit("--val-annotations needs --val-images")
        val = pictures.read(options.val_annotations, options.val_images, train.names)
    partly = sum(not picture.labelled.all() for picture in train.pictures)
    if options.teacher:
        with open(options.teacher) as file:
            added = pictures.add_teacher(train, json.load(file), options.teacher_sure, options.teacher_doubtful)
        print(f"the teacher adds {added} objects")
    print(f"{len(train.pictures)} pictures ({partly} labelled in part), {len(train.names)} classes, on {device}")

    model = SSD300(len(train.names) + 1)
    if options.init and not options.resume:
        fresh = load_weights(model, options.init)
        print(f"starting from {options.init}" + (f"; at random: {', '.join(fresh)}" if fresh else ""))
    model.to(device, memory_format=torch.channels_last)
    mode = trained(model, options.freeze, options.norms)
    average = Average(model, options.ema)
    defaults = default_boxes().to(device)
    parts, heads = model.parts(), model.conf
    frozen, rest = torch.nn.Sequential(*parts[: options.freeze]), torch.nn.Sequential(*parts[options.freeze :])

    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    highest = options.rate * options.batch / 32
    if options.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups(model, highest, options), lr=highest, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(groups(model, highest, options), lr=highest)

    precision = options.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    autocast = (lambda: torch.autocast(device.type, kind)) if kind else contextlib.nullcontext
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    per_epoch = len(train.pictures) // options.batch
    steps = options.steps or options.epochs * per_epoch
    warm_up = min(options.warm_up, max(1, steps // 10))
    epoch, step, best = 0, 0, -1.0
    if options.resume:
        saved = torch.load(out / "last.pt", map_location=device, weights_only=True)
        if saved["names"] != train.names:
            raise SystemExit(f"{out / 'last.pt'} is of other classes than {options.annotations}")
        average.model.load_state_dict(saved["model"])
        training = saved["training"]
        model.load_state_dict(training["raw"])
        optimizer.load_state_dict(training["optimizer"])
        scaler.load_state_dict(training["scaler"])
        epoch, step, best, average.updates = (training[key] for key in ("epoch", "step", "best", "updates"))
        print(f"going on after epoch {epoch}, step {step}")

    def checkpoint(path):
        training = {
            "raw": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
            "epoch": epoch, "step": step, "best": best, "updates": average.updates,
        }  # fmt: skip
        # `model` and `names` are what Boxreel and convert_checkpoint.py look for.
        publish({"model": average.model.state_dict(), "names": train.names, "training": training}, path)

    if options.frozen == "int8":
        torch.backends.quantized.engine = "onednn"
        plain = pictures.Plain(train)
        some = [torch.from_numpy(plain[number][0]) for number in range(0, len(plain), len(plain) // 32 + 1)]
        frozen = quantised(frozen, normalised(torch.stack(some)).split(8))

    epochs = range(epoch, epoch + math.ceil(max(0, steps - step) / per_epoch))
    weights = pictures.repeats(train, options.balance) if options.balance else [1.0] * len(train.pictures)
    loader = torch.utils.data.DataLoader(
        pictures.Augmented(train, options.seed, options.whole, options.mosaic, weights), num_workers=options.workers,
        pin_memory=device.type == "cuda", batch_sampler=pictures.Batches(weights, options.batch, options.seed, epochs),
    )  # fmt: skip
    mode()
    started, places, kinds, count = time.monotonic(), 0.0, 0.0, 0
    for batch in loader:
        if step == steps:
            break
        pixels, target, wanted, labelled = (values.to(device, non_blocking=True) for values in batch)
        share = rate_at(step, steps, warm_up)
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * share
        with autocast():
            with torch.no_grad():
                x = frozen(normalised(pixels))
            maps = model.maps(rest(x))
        if options.frozen == "int8" and count % 50 == 0:
            heads = [quantised(head, [x.detach().float()]) for head, x in zip(model.conf, maps)]
        with autocast():
            with torch.no_grad():
                everywhere = model.everywhere(heads, maps)
            offsets, logits, picture, box = model.at(maps, learnt_from(everywhere, target, labelled))
        target, wanted = target[picture, box], wanted[picture, box]
        of_place, of_kind = loss(offsets, logits, target, wanted, labelled[picture], defaults[box])
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(of_place + of_kind).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(learnt, 10.0)
        scaler.step(optimizer)
        scaler.update()
        average.update(model)
        of_place, of_kind = torch.stack([of_place, of_kind]).tolist()
        if not math.isfinite(of_place + of_kind):
            raise SystemExit(f"the loss is no finite number at step {step}; try a lower --rate")
        places, kinds, step, count = places + of_place, kinds + of_kind, step + 1, count + 1
        if step % 50 == 0 or step == steps or steps < 50:
            speed = count * options.batch / (time.monotonic() - started)
            print(
                f"epoch {epoch + 1}  step {step}/{steps}  place {places / count:.3f}  class {kinds / count:.3f}  "
                f"rate {highest * share:.2e}  {speed:.1f} pictures a second", flush=True,
            )  # fmt: skip
        if count < per_epoch and step < steps:
            continue
        epoch += 1
        if val and (epoch % options.measure_every == 0 or step == steps):
            ap, ap50 = measure(average.model, val, defaults, device, options.batch, options.workers, autocast)
            print(f"epoch {epoch}  AP {ap:.4f}  AP50 {ap50:.4f}", flush=True)
            if ap > best:
                best = ap
                checkpoint(out / "best.pt")
        checkpoint(out / "last.pt")
        mode()
        started, places, kinds, count = time.monotonic(), 0.0, 0.0, 0

    chosen = out / ("best.pt" if val else "last.pt")
    convert_checkpoint.convert(chosen, out / "model.safetensors")


if __name__ == "__main__":
    main()
