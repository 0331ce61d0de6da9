"""Runs a program and watches it and its children: time, memory, and how busy the machine was."""

import pathlib
import subprocess
import tempfile
import threading
import time

PAUSE = 0.2


def family(root):
    """The process `root` and all that descend from it."""
    parents = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold anything; the parent is the second field after it.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found, queue = [], [root]
    while queue:
        found.append(queue.pop())
        queue += parents.get(found[-1], [])
    return found


def memory(pid):
    """Bytes of a process, what it shares with others counted by halves, thirds and so on (PSS)."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def ticks():
    """What all cores did since the machine started: (busy, all)."""
    fields = [int(n) for n in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


class Watched:
    """What became of a program: `output`, `errors`, `code`, `seconds`, `peak` (bytes of it and its children together),
    `busy` (share of all cores' time, other programs included, second by second)."""

    def __init__(self, command):
        command = [str(part) for part in command]
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            start = time.perf_counter()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
            self.peak, self.busy = 0, []
            over = threading.Event()
            watcher = threading.Thread(target=self.watch, args=(process.pid, over))
            watcher.start()
            self.code = process.wait()
            self.seconds = time.perf_counter() - start
            over.set()
            watcher.join()
            for file in (output, errors):
                file.seek(0)
            self.output, self.errors = output.read(), errors.read()

    def watch(self, pid, over):
        before, marked = ticks(), time.perf_counter()
        while not over.wait(PAUSE):
            self.peak = max(self.peak, sum(memory(one) for one in family(pid)))
            if time.perf_counter() - marked >= 1:
                now = ticks()
                self.busy.append(round((now[0] - before[0]) / max(1, now[1] - before[1]), 3))
                before, marked = now, time.perf_counter()
