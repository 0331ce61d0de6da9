#!/usr/bin/env python3
"""Times the old way and Boxreel on the same clip, in turns, and says what machine that was.

Turns (old, new, old, new, …) rather than blocks, because a machine's speed drifts; medians and the whole spread,
because a single number hides it. Boxreel is timed from outside, start and model loading included; the old way is
timed from inside, without Python's start and the import of PyTorch, so the comparison leans towards the old way.
Both write every frame file, text file and video, and a run that did not is not counted but ends the benchmark.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time


def processor():
    """What decides the speed: the model, the cores, and the flags that choose the precision."""
    fields = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    return {
        "model": fields.get("model name", "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags],
        "load_before": round(os.getloadavg()[0], 2),
    }


def run(name, command):
    """Runs one program; gives its standard output and the seconds from start to end."""
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"{name} failed with exit code {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    return done.stdout, seconds


def check_files(name, folder, frames):
    for kind, pattern in (("src_frame", "frame_*.jpg"), ("txts", "infer*.txt"), ("tar_frame", "tar_*.jpg")):
        found = sum(1 for _ in (folder / kind).glob(pattern))
        if found != frames:
            sys.exit(f"{name} says {frames} frames, but left {found} files in {kind}/: the times would not compare")


def old_way(script, arguments, out):
    output, seconds = run("the old way", [sys.executable, script, arguments.clip, arguments.model, out])
    summary = json.loads(output.strip().splitlines()[-1])
    inside = summary.get("seconds", summary.get("total_s"))
    check_files("the old way", out, summary["frames"])
    return {"frames": summary["frames"], "seconds": inside, "outside": round(seconds, 3), "details": summary}


def boxreel(arguments, out):
    command = [arguments.boxreel, "detect", arguments.clip, "--out", out, "--model", arguments.model]
    output, seconds = run("boxreel", [*command, "--exist-ok", "--save-frames", "--save-txt", "--json"])
    summary = json.loads(output)
    frames = summary["sources"][0]["frames"]
    check_files("boxreel", out / arguments.clip.stem, frames)
    return {"frames": frames, "seconds": round(seconds, 3), "outside": round(seconds, 3), "details": summary}


def table(rows, reference):
    lines = [f"{'':<28}{'frames/s':>10}{'slowest':>10}{'fastest':>10}{'rounds':>8}{'ratio':>8}"]
    base = statistics.median(rows[reference])
    for name, speeds in rows.items():
        middle = statistics.median(speeds)
        lines.append(
            f"{name:<28}{middle:>10.2f}{min(speeds):>10.2f}{max(speeds):>10.2f}{len(speeds):>8}{middle / base:>8.2f}"
        )
    return "\n".join(lines)


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--boxreel", type=pathlib.Path, required=True, help="the program, a release build")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=pathlib.Path, help="another script taking the old way's arguments")
    parser.add_argument("--results", type=pathlib.Path, required=True, help="folder for the JSON file")
    arguments = parser.parse_args()

    runners = {"old way": lambda out: old_way(here / "old_way.py", arguments, out)}
    if arguments.peer is not None:
        runners[f"old way ({arguments.peer.name})"] = lambda out: old_way(arguments.peer, arguments, out)
    runners["boxreel"] = lambda out: boxreel(arguments, out)

    machine = processor()
    rounds = []
    for number in range(1, arguments.rounds + 1):
        for name, runner in runners.items():
            # Beside the results, not in /tmp: that may be memory, which no real job writes to.
            out = pathlib.Path(tempfile.mkdtemp(prefix="round-", dir=arguments.results))
            try:
                result = runner(out)
            finally:
                shutil.rmtree(out)
            rounds.append({"round": number, "program": name, **result})
            print(
                f"round {number}: {name:<28} {result['frames']} frames in {result['seconds']:.1f} s", file=sys.stderr
            )

    if len({entry["frames"] for entry in rounds}) != 1:
        sys.exit("the programs do not agree on the number of frames in this clip: the times would not compare")
    speeds = {name: [e["frames"] / e["seconds"] for e in rounds if e["program"] == name] for name in runners}
    bf16 = [flag for flag in machine["flags"] if flag.endswith("_bf16")]
    flags = " and ".join(bf16) or "neither amx_bf16 nor avx512_bf16"
    print(f"{arguments.clip.name}, {rounds[0]['frames']} frames, with all frame files")
    print(f"{machine['model']}, {machine['cores']} cores, {flags}; load before: {machine['load_before']}\n")
    print(table(speeds, "old way"))

    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    report = arguments.results / f"bench-{stamp}.json"
    report.write_text(json.dumps({"clip": arguments.clip.name, "processor": machine, "rounds": rounds}, indent=1))
    print(f"\ndetails: {report}")


if __name__ == "__main__":
    main()
