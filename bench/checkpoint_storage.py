"""What safering's storage makes of PyTorch's torch_checkpointing, beside that package's own local storage.

    python bench/checkpoint_storage.py DIR [--size MIB] [--rounds ROUNDS]

Both save and load the same model through CheckpointManager, in interleaved rounds after one that does not count. Saves
end durable: the package's own storage syncs nothing, so its files and directories are synced after it, in its time.
Loads are cold. Prints medians, and the fastest and slowest round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time

import torch
from torch_checkpointing import CheckpointManager
from torch_checkpointing.config import SyncCheckpointSaverConfig
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from safering.torch_checkpointing import SaferingStorageConfig

STORAGES = {
    "its own": LocalFileSystemStorageConfig(use_direct_io=False),
    "its own, O_DIRECT": LocalFileSystemStorageConfig(use_direct_io=True),
    "safering": SaferingStorageConfig(),
}


def files_below(directory: str) -> list[str]:
    return [os.path.join(at, name) for at, _, names in os.walk(directory) for name in names]


def sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def drop_from_cache(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(directory: str, name: str, state: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> list[float]:
    """Seconds and processor seconds of a durable save, and of a cold load."""
    manager = CheckpointManager(
        CheckpointManager.Config(save=SyncCheckpointSaverConfig(), storage_config=STORAGES[name])
    )
    path = os.path.join(directory, "step")
    shutil.rmtree(path, ignore_errors=True)
    times = [(time.perf_counter(), time.process_time())]
    manager.save(path, {"model": state})
    if name != "safering":
        for file in files_below(path):
            sync(file)
        sync(path)
        sync(directory)
    times.append((time.perf_counter(), time.process_time()))
    for file in files_below(path):
        drop_from_cache(file)
    times.append((time.perf_counter(), time.process_time()))
    manager.load(path, into={"model": target}, strict=True)
    times.append((time.perf_counter(), time.process_time()))
    manager.close()
    assert all(torch.equal(state[key], target[key]) for key in state)
    shutil.rmtree(path)
    return [times[end][kind] - times[end - 1][kind] for end in (1, 3) for kind in (0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    directory, count = arguments.directory, arguments.size // 16
    if count < 1 or arguments.rounds < 1:
        parser.error("a size of 16 MiB and one round is the least")
    os.makedirs(directory, exist_ok=True)
    state = {f"layers.{i}.weight": torch.randn(2048, 2048) for i in range(count)}
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    samples: dict[str, list[list[float]]] = {name: [] for name in STORAGES}
    for number in range(arguments.rounds + 1):
        for name in list(samples):
            try:
                sample = measure(directory, name, state, target)
            except OSError as error:
                print(f"{name}: {error}")
                del samples[name]
                shutil.rmtree(os.path.join(directory, "step"), ignore_errors=True)
                continue
            if number > 0:
                samples[name].append(sample)
    for name, found in samples.items():
        columns = list(zip(*found))
        texts = [f"{statistics.median(one):.2f} ({min(one):.2f}-{max(one):.2f})" for one in columns]
        print(f"{name:18} save {texts[0]} s, {texts[1]} CPU-s; load {texts[2]} s, {texts[3]} CPU-s")


if __name__ == "__main__":
    main()
