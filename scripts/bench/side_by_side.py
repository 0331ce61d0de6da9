#!/usr/bin/env python3
"""Times the old way and Boxreel on the same clip, in turns, and says what machine that was.

Turns (old, new, old, new, …) rather than blocks, because a machine's speed drifts; medians and the whole spread,
because a single number hides it. Boxreel is timed from outside, start and model loading included; the old way is
timed from inside, without Python's start and the import of PyTorch, so the comparison leans towards the old way.
Both write every frame file, text file and video, and a run that did not is not counted but ends the benchmark;
Boxreel runs once more without frame and text files, as it does unless told.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile

from watch import Watched


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
        "flags": [flag for flag in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2") if flag in flags],
        "load_before": round(os.getloadavg()[0], 2),
    }


def run(name, command):
    """Runs one program to its end, which has to be a good one."""
    done = Watched(command)
    if done.code != 0:
        sys.exit(f"{name} failed with exit code {done.code}:\n{done.errors.strip()[-2000:]}")
    return done


def of_run(done, frames, seconds, details):
    return {
        "frames": frames, "seconds": round(seconds, 3), "outside": round(done.seconds, 3), "peak_bytes": done.peak,
        "busy": done.busy, "details": details,
    }  # fmt: skip


def check_files(name, folder, frames):
    for kind, pattern in (("src_frame", "frame_*.jpg"), ("txts", "infer*.txt"), ("tar_frame", "tar_*.jpg")):
        found = sum(1 for _ in (folder / kind).glob(pattern))
        if found != frames:
            sys.exit(f"{name} says {frames} frames, but left {found} files in {kind}/: the times would not compare")


def old_way(script, arguments, out):
    done = run("the old way", [sys.executable, script, arguments.clip, arguments.model, out])
    summary = json.loads(done.output.strip().splitlines()[-1])
    check_files("the old way", out, summary["frames"])
    return of_run(done, summary["frames"], summary.get("seconds", summary.get("total_s")), summary)


def boxreel(arguments, out, files, precision):
    command = [arguments.boxreel, "detect", arguments.clip, "--out", out, "--model", arguments.model]
    command += ["--precision", precision, "--exist-ok", "--json"]
    done = run("boxreel", [*command, "--save-frames", "--save-txt"] if files else command)
    summary = json.loads(done.output)
    frames = summary["sources"][0]["frames"]
    if files:
        check_files("boxreel", out / arguments.clip.stem, frames)
    return of_run(done, frames, done.seconds, summary)


def speed(entry):
    return entry["frames"] / entry["seconds"]


def table(rows, reference):
    lines = [f"{'':<32}{'frames/s':>10}{'slowest':>9}{'fastest':>9}{'ratio':>7}{'peak MB':>9}{'busy':>6}"]
    base = statistics.median(speed(entry) for entry in rows[reference])
    for name, entries in rows.items():
        speeds = [speed(entry) for entry in entries]
        peak = max(entry["peak_bytes"] for entry in entries) / 1e6
        busy = statistics.median(share for entry in entries for share in entry["busy"] or [0])
        lines.append(
            f"{name:<32}{statistics.median(speeds):>10.2f}{min(speeds):>9.2f}{max(speeds):>9.2f}"
            f"{statistics.median(speeds) / base:>7.2f}{peak:>9.0f}{busy:>6.0%}"
        )
    return "\n".join(lines)


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--boxreel", type=pathlib.Path, required=True, help="the program, a release build")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="+", default=["auto"], help="Boxreel's, one or more")
    parser.add_argument("--peer", type=pathlib.Path, help="another script taking the old way's arguments")
    parser.add_argument("--results", type=pathlib.Path, required=True, help="folder for the JSON file")
    arguments = parser.parse_args()

    runners = {"old way": lambda out: old_way(here / "old_way.py", arguments, out)}
    if arguments.peer is not None:
        runners[f"old way ({arguments.peer.name})"] = lambda out: old_way(arguments.peer, arguments, out)
    for precision in arguments.precision:
        name = "boxreel" if precision == "auto" else f"boxreel {precision}"
        runners[name] = lambda out, p=precision: boxreel(arguments, out, True, p)
        runners[f"{name}, video and data only"] = lambda out, p=precision: boxreel(arguments, out, False, p)

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
                f"round {number}: {name:<32} {result['frames']} frames in {result['seconds']:.1f} s", file=sys.stderr
            )

    if len({entry["frames"] for entry in rounds}) != 1:
        sys.exit("the programs do not agree on the number of frames in this clip: the times would not compare")
    rows = {name: [entry for entry in rounds if entry["program"] == name] for name in runners}
    bf16 = [flag for flag in machine["flags"] if flag.endswith("_bf16")]
    flags = " and ".join(bf16) or "neither amx_bf16 nor avx512_bf16"
    print(f"{arguments.clip.name}, {rounds[0]['frames']} frames")
    print(f"{machine['model']}, {machine['cores']} cores, {flags}; load before: {machine['load_before']}\n")
    print(table(rows, "old way"))
    print("\nbusy: share of all cores' time, the median second; peak: the program and its children together")

    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    report = arguments.results / f"bench-{stamp}.json"
    report.write_text(json.dumps({"clip": arguments.clip.name, "processor": machine, "rounds": rounds}, indent=1))
    print(f"\ndetails: {report}")


if __name__ == "__main__":
    main()
