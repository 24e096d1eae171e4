"""One durable save and one cold load by PyTorch's own classes; prints JSON for bench/roofline.

    python upstream.py DIR BYTES

Needs torch and safetensors. Memory is touched before each timed part; files are fsynced within the time of the
save, since upstream leaves that out and the other side does not.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from process import cpu_seconds, peak_bytes, reset_peak

ROWS, COLUMNS = 4096, 4096


def sync_files(directory):
    for path in sorted(directory.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def drop_from_cache(directory):
    for path in sorted(directory.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(work, size):
    # First touches of fresh memory are the machine's business, not the writer's.
    torch.empty(size, dtype=torch.uint8).fill_(1)
    before, cpu, begin = reset_peak(), cpu_seconds(), time.monotonic()
    work()
    seconds = time.monotonic() - begin
    extra = peak_bytes() - before if before is not None else None
    return {"bytes": size, "seconds": seconds, "cpu": cpu_seconds() - cpu, "extra": extra}


def main():
    directory, size = Path(sys.argv[1]) / "upstream", int(sys.argv[2])
    count = max(1, size // (ROWS * COLUMNS * 2))
    tensors = {f"model.layers.{i}.weight": torch.randint(0, 1 << 15, (ROWS, COLUMNS), dtype=torch.int16).view(torch.bfloat16)
               for i in range(count)}
    size = count * ROWS * COLUMNS * 2

    def save():
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(path=str(directory)), no_dist=True)
        sync_files(directory)

    target = {name: torch.empty_like(tensor).fill_(1) for name, tensor in tensors.items()}

    def load():
        dcp.load(target, storage_reader=dcp.HuggingFaceStorageReader(path=str(directory)), no_dist=True)

    saved = measure(save, size)
    drop_from_cache(directory)
    loaded = measure(load, size)
    if any(not torch.equal(target[name].view(torch.int16), tensors[name].view(torch.int16)) for name in tensors):
        sys.exit("what was loaded differs from what was saved")
    shutil.rmtree(directory)
    print(json.dumps({"save": saved, "load": loaded}))


if __name__ == "__main__":
    main()
