#!/usr/bin/env python3
"""Times the bare network in a loop: Boxreel's and those of the programs a user would pick instead, on the same weights.

In turns, each for some seconds, so that all of them meet the same machine; the medians and the whole spread are shown.
Every runner gets all cores. Boxreel's includes normalising the pictures, decoding the boxes and suppressing them; the
peers' is the forward pass alone, from floats to raw outputs, so the comparison leans towards them.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

import old_way
from side_by_side import processor

SIDE = old_way.SIDE


def pictures(batch):
    return np.random.default_rng(0).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)


def loop(once, batch, seconds):
    """Pictures a second. What `once` only began is waited for by its `wait`."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        once()
        done += batch
    getattr(once, "wait", lambda: None)()
    return done / (time.perf_counter() - start)


def eager(model, batch, kind):
    x = torch.from_numpy(pictures(batch)).contiguous(memory_format=torch.channels_last)

    def once():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            model(x)

    return once


def compiled(model, batch):
    """PyTorch's compiler, with the weights in bf16."""
    half = torch.compile(model.to(torch.bfloat16, memory_format=torch.channels_last), dynamic=False)
    x = torch.from_numpy(pictures(batch)).bfloat16().contiguous(memory_format=torch.channels_last)

    def once():
        with torch.inference_mode():
            half(x)

    once()
    return once


def openvino(model, batch, precision):
    import openvino as ov

    network = ov.convert_model(model, example_input=torch.from_numpy(pictures(batch)))
    network.reshape([batch, 3, SIDE, SIDE])
    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    ready = ov.Core().compile_model(network, "CPU", hints)
    queue = ov.AsyncInferQueue(ready)
    x = pictures(batch)

    def once():
        # Waits for a free place only, so that the device never waits.
        queue.start_async([x])

    once.wait = queue.wait_all
    return once


def onnxruntime(model, batch):
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.onnx.export(model, (torch.from_numpy(pictures(batch)),), path, dynamo=False)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name, x = session.get_inputs()[0].name, pictures(batch)
    return lambda: session.run(None, {name: x})


def boxreel(program, model, precision, batch, seconds):
    command = [program, model, "--precision", precision, "--batch", str(batch), "--seconds", str(seconds)]
    command += ["--threads", str(len(os.sched_getaffinity(0)))]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return json.loads(done.stdout)[0]["pictures_per_second"]


def peak(kind, seconds):
    """What a plain matrix multiply reaches on these cores: GFLOP a second."""
    n = 2048
    a, b = torch.randn(n, n).to(kind), torch.randn(n, n).to(kind)
    return loop(lambda: a @ b, 2 * n**3 / 1e9, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="SSD300-ResNet50 as safetensors")
    parser.add_argument("--bare", type=pathlib.Path, required=True, help="infer's example `bare`, a release build")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="+", default=["auto"], help="Boxreel's, one or more")
    parser.add_argument("--seconds", type=float, default=5, help="for each runner in each round")
    parser.add_argument("--results", type=pathlib.Path, help="JSON file to write")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    machine = processor()

    def model():
        return old_way.load_model(arguments.model).to(memory_format=torch.channels_last)

    # (name, batch, builder): what cannot be had on this machine is left out, with the reason.
    wanted = [
        ("PyTorch eager fp32", 1, lambda batch: eager(old_way.load_model(arguments.model), batch, torch.float32)),
        ("PyTorch eager bf16", 8, lambda batch: eager(model(), batch, torch.bfloat16)),
        ("PyTorch compiled bf16", 8, lambda batch: compiled(model(), batch)),
        ("OpenVINO f32", 1, lambda batch: openvino(old_way.load_model(arguments.model), batch, "f32")),
        ("OpenVINO bf16", 1, lambda batch: openvino(old_way.load_model(arguments.model), batch, "bf16")),
        ("OpenVINO bf16", 8, lambda batch: openvino(old_way.load_model(arguments.model), batch, "bf16")),
        ("onnxruntime fp32", 8, lambda batch: onnxruntime(old_way.load_model(arguments.model), batch)),
    ]
    runners, rows = {}, {}
    for name, batch, build in wanted:
        label = f"{name}, batch {batch}"
        try:
            once = build(batch)
            loop(once, batch, 0.1)
        except Exception as error:  # a peer's own trouble must not end the benchmark
            print(f"left out: {label}: {str(error).strip().splitlines()[0][:200]}", file=sys.stderr)
            continue
        runners[label] = lambda once=once, batch=batch: loop(once, batch, seconds)
    for precision in ("fp32", *arguments.precision):
        runners[f"Boxreel {precision}, batch 4"] = lambda p=precision: boxreel(
            arguments.bare, arguments.model, p, 4, seconds
        )
    for number in range(1, arguments.rounds + 1):
        for label, runner in runners.items():
            rate = runner()
            rows.setdefault(label, []).append(rate)
            print(f"round {number}: {label:<34} {rate:6.2f} pictures/s", file=sys.stderr)
    peaks = {str(kind).removeprefix("torch."): peak(kind, seconds) for kind in (torch.float32, torch.bfloat16)}

    base = statistics.median(rows.get("PyTorch eager fp32, batch 1", [1]))
    print(f"{'the bare network':<36}{'pictures/s':>11}{'least':>8}{'most':>8}{'ratio':>7}{'GFLOP/s':>9}")
    for label, rates in rows.items():
        middle = statistics.median(rates)
        # 40.3 GFLOP a picture.
        print(
            f"{label:<36}{middle:>11.2f}{min(rates):>8.2f}{max(rates):>8.2f}{middle / base:>7.2f}{middle * 40.3:>9.0f}"
        )
    for kind, rate in peaks.items():
        print(f"{'a matrix multiply, ' + kind:<36}{'':>34}{rate:>9.0f}")
    if arguments.results is not None:
        report = {"processor": machine, "pictures_per_second": rows, "matrix_gflops": peaks}
        arguments.results.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
