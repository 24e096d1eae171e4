#!/usr/bin/env python3
"""safering.torch beside PyTorch's own classes, in one interleaved run: wall and CPU time, extra memory.

    python bench/torch_checkpoint.py DIR [--size 2GiB] [--runs 5] [--case NAME]... [--json FILE]

Needs torch, safetensors and the installed package safering. Every round runs fio, then each case by both sides in
fresh processes; the first round is dropped, the rest give medians. Durable is compared with durable: what upstream
leaves unsynced is synced within its time. Cold is compared with cold: files leave the page cache before a load.
Of many small tensors there are two lines: the writer and reader alone, and safering.torch.save() and load() besides.
"written" leaves planning out, as safering's report tells it: the first transfer to the last sync, and the commit.
Memory is touched and freed before each timed part, for fresh pages are the machine's business; ranks begin and
end together, so wall time is that of the slowest; CPU is the sum of the ranks, extra memory that of the largest.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from fio import fio_round, parse_size
from process import cpu_seconds, peak_bytes, reset_peak

SMALL_TENSORS = 20000

# name -> (what, ranks, options); options: the tensors ("large" or "small"), the dimension they are sharded along
# (None: whole on every rank), the writer's arguments.
CASES = {
    "save": ("save", 1, {"tensors": "large"}),
    "save, 2 ranks, dim 0": ("save", 2, {"tensors": "large", "dim": 0, "writer": {"save_distributed": True, "enable_consolidation": True}}),
    "save, 2 ranks, dim 1": ("save", 2, {"tensors": "large", "dim": 1, "writer": {"save_distributed": True, "enable_consolidation": True}}),
    "save, 2 ranks, shard files": ("save", 2, {"tensors": "large", "dim": 0, "writer": {"save_distributed": True}}),
    "save, small": ("save", 1, {"tensors": "small"}),
    "save, small, 2 ranks, dim 0": ("save", 2, {"tensors": "small", "dim": 0, "writer": {"save_distributed": True, "enable_consolidation": True}}),
    "load, small": ("load", 1, {"tensors": "small"}),
    "load": ("load", 1, {"tensors": "large"}),
    "load, 2 ranks, dim 1": ("load", 2, {"tensors": "large", "dim": 1}),
    "train, async save": ("train", 1, {"tensors": "large"}),
}


# ------------------------------------------------------------------ a rank


def shapes(kind, size):
    """Llama-shaped, or 20,000 of 4 to 64 KiB (float32: rows of 1 KiB)."""
    if kind == "small":
        return {f"layers.{i}.weight": (4 + i * 7919 % 61, 256) for i in range(SMALL_TENSORS)}
    out = {}
    width, inner, layer = 2048, 5632, 0
    left = size // 4
    while left > 0:
        for name, shape in (
            ("attention.wq", (width, width)), ("attention.wk", (width // 4, width)), ("attention.wv", (width // 4, width)),
            ("attention.wo", (width, width)), ("feed_forward.w1", (inner, width)), ("feed_forward.w2", (width, inner)),
            ("feed_forward.w3", (inner, width)), ("attention_norm", (width,)), ("ffn_norm", (width,)),
        ):
            out[f"layers.{layer}.{name}.weight"] = shape
            left -= shape[0] * (shape[1] if len(shape) > 1 else 1)
        layer += 1
    return out


def make_state(options, size, fill):
    import torch

    state = {}
    mesh = None
    if options.get("dim") is not None:
        from torch.distributed.tensor import DTensor, Shard, init_device_mesh

        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for index, (name, shape) in enumerate(shapes(options["tensors"], size).items()):
        dim = options.get("dim")
        if mesh is None or dim >= len(shape):
            state[name] = torch.full(shape, float(index % 97) if fill else 0.0)
            continue
        rank, world = mesh.get_local_rank(), mesh.size()
        rows = -(-shape[dim] // world)
        local = list(shape)
        local[dim] = max(0, min(rows, shape[dim] - rank * rows))
        stride = [1] * len(shape)
        for d in range(len(shape) - 1, 0, -1):
            stride[d - 1] = stride[d] * shape[d]
        state[name] = DTensor.from_local(
            torch.full(local, float(index % 97) if fill else 0.0), mesh, [Shard(dim)], run_check=False,
            shape=torch.Size(shape), stride=tuple(stride),
        )
    return state


def local_bytes(state):
    tensors = [value.to_local() if hasattr(value, "to_local") else value for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def for_each_file(directory, act):
    for path in sorted(Path(directory).rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        act(descriptor)
        os.close(descriptor)


def measured(work, touched):
    import torch

    torch.empty(touched, dtype=torch.uint8).fill_(1)
    barrier()
    peak, cpu, begin = reset_peak(), cpu_seconds(), time.monotonic()
    if peak is None:
        sys.exit("/proc/self/clear_refs cannot be written here, so peak memory cannot be told")
    work()
    barrier()
    return {"seconds": time.monotonic() - begin, "cpu": cpu_seconds() - cpu, "extra": peak_bytes() - peak}


def barrier():
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def side_of(name):
    """dcp.save and dcp.load, or what takes their place; the writer and the reader."""
    import torch.distributed.checkpoint as dcp
    import safering.torch

    side = dcp if name == "upstream" else safering.torch
    functions = safering.torch if name == "functions" else dcp
    return functions.save, functions.load, side.HuggingFaceStorageWriter, side.HuggingFaceStorageReader


def train(state, save):
    """Steps of a small training loop in a fixed time: idle, then with a save that begins at its start."""
    import torch

    torch.set_num_threads(1)
    weight = torch.randn(512, 512, requires_grad=True)
    batch = torch.randn(256, 512)

    def steps(seconds, begin_save):
        end = time.monotonic() + seconds
        last = time.monotonic()
        count, longest = 0, 0.0
        future = begin_save() if begin_save else None
        saved = None
        while time.monotonic() < end:
            batch.matmul(weight).tanh().sum().backward()
            weight.grad = None
            now = time.monotonic()
            longest = max(longest, now - last)
            last = now
            count += 1
            if future is not None and saved is None and future.done():
                saved = now
                future.result()
        if future is not None:
            future.result()
        return count, longest

    window = 8.0
    steps(0.5, None)
    idle, _ = steps(window / 2, None)
    busy, longest = steps(window, save)
    rate = busy / (2 * idle)
    return {"rate": rate, "pause": longest, "lost": (1 - rate) * window}


def run_rank(job):
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    warnings.filterwarnings("ignore")
    what, ranks, options = CASES[job["case"]]
    if ranks > 1 or what == "train":
        dist.init_process_group("gloo", init_method=f"file://{job['store']}", rank=job["rank"], world_size=ranks)
    save_all, load_all, writer, reader = side_of(job["side"])
    path = job["path"]
    state = make_state(options, job["size"], fill=True)
    size = local_bytes(state)
    durable = lambda: job["side"] != "upstream" or job["rank"] != 0 or for_each_file(path, os.fsync)

    def save(target=path):
        made = writer(path=target, **options.get("writer", {}))
        save_all(state, storage_writer=made)
        return made

    if what == "save":
        # What a process pays once (imports, rings, buffers) is paid before.
        tiny = {"x": torch.zeros(8)}
        save_all(tiny, storage_writer=writer(path=f"{path}-warm-up"))

        saved = None

        def work():
            nonlocal saved
            saved = save()
            barrier()
            durable()

        result = measured(work, size)
        if job["side"] != "upstream":
            result["written"] = saved.work.transfer_seconds + saved.work.flush_seconds
            result["commit"] = saved.report.commit_seconds if job["rank"] == 0 else 0
    elif what == "load":
        if job["rank"] == 0:
            dcp.save(make_state(options | {"dim": None}, job["size"], fill=True), storage_writer=writer(path=path), no_dist=True)
            for_each_file(path, os.fsync)
            for_each_file(path, lambda f: os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED))
        barrier()
        target = make_state(options, job["size"], fill=False)
        result = measured(lambda: load_all(target, storage_reader=reader(path)), size)
        for name in list(state)[:: max(1, len(state) // 50)]:
            a, b = (x[name].to_local() if hasattr(x[name], "to_local") else x[name] for x in (state, target))
            assert torch.equal(a, b), f"{name} was not loaded as it was saved"
    else:
        for step in ("first", "second"):  # the first pays for the memory, as a trainer does once
            torch.empty(2 * size, dtype=torch.uint8).fill_(1)
            result = train(state, lambda: dcp.async_save(state, storage_writer=writer(path=f"{path}-{step}")))
    if dist.is_initialized():
        dist.destroy_process_group()
    print(json.dumps(result | {"bytes": size}))


# ------------------------------------------------------------------ the runs


def run_case(scratch, case, side, size):
    what, ranks, _ = CASES[case]
    path = Path(scratch) / side
    job = {"case": case, "side": side, "size": size, "path": str(path), "store": f"{scratch}/store"}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} if ranks > 1 else os.environ
    processes = [
        subprocess.Popen([sys.executable, __file__, "--rank", json.dumps(job | {"rank": rank})], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, env=environment)
        for rank in range(ranks)
    ]
    outputs = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outputs):
        if process.returncode != 0:
            sys.exit(f"{case}, {side}: a rank failed with {process.returncode}\n{errors}")
    results = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    for entry in Path(scratch).iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if what == "train":
        return results[0]
    out = {
        "bytes": sum(result["bytes"] for result in results),
        "seconds": max(result["seconds"] for result in results),
        "cpu": sum(result["cpu"] for result in results),
        "extra": max(result["extra"] for result in results),
    }
    if "written" in results[0]:
        out["written"] = max(result["written"] for result in results) + results[0]["commit"]
    return out


def median(samples, key):
    return statistics.median(sample[key] for sample in samples)


def print_results(results, disk):
    gib = 1 << 30
    print(f"\n{'':<30}{'upstream':>25}{'safering':>28}{'':>16}{'written':>15}")
    print(f"{'':<30}{'s':>7}{'CPU s':>8}{'extra':>10}{'s':>10}{'CPU s':>8}{'extra':>10}{'faster':>9}{'x fio':>7}{'s':>8}{'x fio':>7}")

    def share(samples, key, fio):
        return statistics.median(own["bytes"] / own[key] / (disk["bytes"] / disk["seconds"]) for own, disk in zip(samples, fio))

    for case, sides in results.items():
        what = CASES[case][0]
        if what == "train":
            continue
        s0, c0, e0 = (median(sides["upstream"], key) for key in ("seconds", "cpu", "extra"))
        for side in [side for side in sides if side != "upstream"]:
            s1, c1, e1 = (median(sides[side], key) for key in ("seconds", "cpu", "extra"))
            fio = disk[0 if what == "save" else 1]
            written = ""
            if what == "save":
                written = f"{median(sides[side], 'written'):>8.2f}{share(sides[side], 'written', fio):>7.2f}"
            label = case if side == "safering" else "  with save() and load()"
            print(f"{label:<30}{s0:>7.2f}{c0:>8.2f}{e0 / gib:>6.2f} GiB{s1:>10.2f}{c1:>8.2f}{e1 / gib:>6.2f} GiB"
                  f"{s0 / s1:>8.1f}x{share(sides[side], 'seconds', fio):>7.2f}{written}")
    if "train, async save" in results:
        print("\ntraining during async_save (8 s from its call): steps a second against idle; longest pause; training lost")
        for side, samples in results["train, async save"].items():
            print(f"{side:<30}{median(samples, 'rate'):>7.2f}{median(samples, 'pause'):>8.2f} s{median(samples, 'lost'):>8.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", metavar="DIR", nargs="?", help="on the disk to measure; three sizes must be free")
    parser.add_argument("--size", type=parse_size, default=parse_size("2GiB"))
    parser.add_argument("--runs", type=int, default=5, help="rounds that count, after one that does not")
    parser.add_argument("--case", action="append", choices=CASES, help="only these")
    parser.add_argument("--json", metavar="FILE", help="write every sample there")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        return run_rank(json.loads(arguments.rank))
    if not arguments.directory:
        parser.error("DIR is missing")
    if shutil.which("fio") is None:
        sys.exit("fio is not installed: run tools/setup bench first")

    # A rank's file:// store takes no relative path: it would wait for the others for ever.
    directory = Path(arguments.directory).resolve()
    results = {case: {"upstream": [], "safering": []} for case in arguments.case or CASES}
    for case, sides in results.items():
        if CASES[case][2]["tensors"] == "small":
            sides["functions"] = []
    disk = ([], [])
    with tempfile.TemporaryDirectory(prefix=".torch-checkpoint-", dir=directory) as scratch:
        for round_ in range(arguments.runs + 1):
            print(f"round {round_} of {arguments.runs}", file=sys.stderr)
            write, read = fio_round(scratch, arguments.size)
            samples = {case: {side: run_case(scratch, case, side, arguments.size) for side in sides}
                       for case, sides in results.items()}
            if round_ == 0 and arguments.runs > 0:
                continue
            disk[0].append(write)
            disk[1].append(read)
            for case, sides in samples.items():
                for side, sample in sides.items():
                    results[case][side].append(sample)
    rates = [statistics.median(f["bytes"] / f["seconds"] / (1 << 30) for f in part) for part in disk]
    print(f"{arguments.size / (1 << 30):g} GiB, medians of {max(1, arguments.runs)} interleaved rounds; "
          f"fio writes {rates[0]:.2f} and reads {rates[1]:.2f} GiB/s")
    print_results(results, disk)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"fio": disk, **results}, indent=1))


if __name__ == "__main__":
    main()
