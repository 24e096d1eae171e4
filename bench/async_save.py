#!/usr/bin/env python3
"""What a training loop feels of an asynchronous save: PyTorch's async_save, ours through it, and AsyncSaver.

    python bench/async_save.py DIR [--size 2GiB] [--runs 5] [--threads 1] [--share 0.1] [--json FILE]

Needs torch, safetensors and the installed package safering. Every round runs each side once in a fresh process, where
the first save pays for the memory and the second is measured; round 0 is dropped, the rest give medians. A round takes
a minute or two; each result is told, and kept in the JSON, as it comes.

Columns: steps a second while the save is under way and after it, as shares of those before it; the call (it blocks
the loop), the longest step of the loop, and the seconds of training that the save cost in all; how long it took.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

from fio import parse_size
from torch_checkpoint import make_state

SIDES = ("upstream async_save", "safering async_save", "safering AsyncSaver")
COLUMNS = ("during", "after", "call", "longest step", "lost", "save")
IDLE_SECONDS = 2.0


class Loop:
    """Steps of a small training loop."""

    def __init__(self):
        import torch

        self.weight = torch.randn(512, 512, requires_grad=True)
        self.batch = torch.randn(256, 512)

    def run(self, go_on):
        """(steps a second, longest step) while go_on() says so."""
        begin = last = time.monotonic()
        count, longest = 0, 0.0
        while go_on():
            self.batch.matmul(self.weight).tanh().sum().backward()
            self.weight.grad = None
            now = time.monotonic()
            longest = max(longest, now - last)
            last = now
            count += 1
        return count / max(last - begin, 1e-9), longest

    def for_seconds(self, seconds):
        end = time.monotonic() + seconds
        return self.run(lambda: time.monotonic() < end)


def measure(loop, begin_save):
    before, _ = loop.for_seconds(IDLE_SECONDS)
    begin = time.monotonic()
    pending = begin_save()
    called = time.monotonic()
    during, longest = loop.run(lambda: not pending.done())
    ended = time.monotonic()
    pending.result()
    after, _ = loop.for_seconds(IDLE_SECONDS)
    return {
        "during": during / before,
        "after": after / before,
        "call": called - begin,
        "longest step": longest,
        "lost": ended - begin - during * (ended - called) / before,
        "save": ended - begin,
    }


def run_side(job):
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    import safering.torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(job["threads"])
    dist.init_process_group("gloo", init_method=f"file://{job['path']}.store", rank=0, world_size=1)
    state = make_state({"tensors": "large"}, job["size"], fill=True)
    path, side = job["path"], job["side"]
    limits = safering.torch.SaveLimits(processor_share=job["share"])
    if side == "safering AsyncSaver":
        saver = safering.torch.AsyncSaver(limits=limits)
        save = lambda name: saver.save(state, f"{path}-{name}")
    elif side == "safering async_save":
        writer = safering.torch.HuggingFaceStorageWriter
        save = lambda name: dcp.async_save(state, storage_writer=writer(f"{path}-{name}", limits=limits))
    else:
        writer = dcp.HuggingFaceStorageWriter
        save = lambda name: dcp.async_save(state, storage_writer=writer(path=f"{path}-{name}"))
    loop = Loop()
    loop.for_seconds(0.5)
    begin = time.monotonic()
    first = save("first")
    first_call = time.monotonic() - begin
    first.result()
    result = measure(loop, lambda: save("second"))
    dist.destroy_process_group()
    print(json.dumps(result | {"first call": first_call}))


def run(arguments, directory, side):
    path = directory.resolve() / "async"  # the store of a rank takes no relative one
    job = {"side": side, "path": str(path), "size": arguments.size, "threads": arguments.threads, "share": arguments.share}
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{side} failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])
    finally:
        for left in directory.glob("async*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--size", type=parse_size, default=parse_size("2GiB"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="of the training loop")
    parser.add_argument("--share", type=float, default=0.1, help="of a core, for safering's writes; 0: no limit")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        return run_side(json.loads(arguments.job))
    if arguments.directory is None:
        parser.error("DIR is needed")
    results = {side: [] for side in SIDES}
    for number in range(arguments.runs + 1):
        for side in SIDES:
            result = run(arguments, arguments.directory, side)
            results[side].append(result)
            row = ", ".join(f"{name} {result[name]:.2f}" for name in (*COLUMNS, "first call"))
            print(f"round {number} of {arguments.runs}, {side}: {row}", file=sys.stderr)
            if arguments.json:
                arguments.json.write_text(
                    json.dumps({"arguments": vars(arguments), "rounds": results}, indent=2, default=str)
                )
    medians = {
        side: {key: statistics.median(one[key] for one in rounds[1:]) for key in (*COLUMNS, "first call")}
        for side, rounds in results.items()
    }
    print(f"{'':22}" + "".join(f"{name:>14}" for name in (*COLUMNS, "first call")))
    for side, row in medians.items():
        print(f"{side:22}" + "".join(f"{row[key]:14.2f}" for key in (*COLUMNS, "first call")))


if __name__ == "__main__":
    main()
