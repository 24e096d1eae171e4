"""The libraries that `race` runs, each in a process of its own: one durable save and one cold load; prints JSON.

    python bench/peers.py '{"peer": NAME, "directory": DIR, "size": BYTES}'

Every side saves the same float32 tensors. Its save ends when files and directories have been fsynced, by itself or
here; its load begins after the files have left the page cache and ends when every page of every tensor has been
touched, since some map files and read nothing before that. Memory that is saved, or loaded into, has been touched before.
"""

import functools
import importlib
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

from torch_checkpoint import for_each_file, make_state, shapes


# Between the save and the load. The host of a virtual machine may take back memory that is free for some seconds, and to
# get it again takes longer than to read. Without this the page cache that a save has filled would be there at once for
# the load of that library, and a library that saves past the page cache would have none.
PAUSE_SECONDS = 5


class Peer(NamedTuple):
    name: str
    #: What to import: a peer without it is skipped.
    module: str
    #: save(state, directory); None where it only loads what safetensors has written
    save: object
    #: load(target, directory) -> tensors by name; `target` are tensors that may be loaded into
    load: object
    #: whether its save is durable when it returns
    durable: bool = False
    #: what it does once in a process, before anything is timed
    prepare: object = None


def plain_save(state, directory):
    from safetensors.torch import save_file

    save_file(state, directory / "model.safetensors")


def plain_load(_, directory):
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def dcp_save(package):
    def save(state, directory):
        import torch.distributed.checkpoint as dcp

        dcp.save(state, storage_writer=classes(package).HuggingFaceStorageWriter(path=str(directory / "step")), no_dist=True)

    return save


def dcp_load(package):
    def load(target, directory):
        import torch.distributed.checkpoint as dcp

        dcp.load(target, storage_reader=classes(package).HuggingFaceStorageReader(path=str(directory / "step")), no_dist=True)
        return target

    return load


def classes(package):
    return importlib.import_module(package)


def safering_file_save(state, directory):
    from safering.torch import save_file

    save_file(state, directory / "model.safetensors")


def safering_file_load(_, directory):
    from safering.torch import load_file

    return load_file(directory / "model.safetensors")


def torch_save(state, directory):
    import torch

    torch.save(state, directory / "model.pt")


def torch_load(_, directory):
    import torch

    return torch.load(directory / "model.pt", weights_only=True)


def own_storage():
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    # Its direct writes are not aligned; ext4 and xfs refuse them.
    return LocalFileSystemStorageConfig(use_direct_io=False)


def our_storage():
    from safering.torch_checkpointing import SaferingStorageConfig

    return SaferingStorageConfig()


def manager(storage):
    from torch_checkpointing import CheckpointManager

    config = CheckpointManager.Config.with_sync_save()
    config.storage_config = storage()
    return CheckpointManager(config)


def checkpointing_save(storage):
    def save(state, directory):
        saver = manager(storage)
        saver.save(str(directory / "step"), {"model": state})
        saver.close()

    return save


def checkpointing_load(storage):
    def load(target, directory):
        loader = manager(storage)
        loaded = loader.load(str(directory / "step"), into={"model": target})
        loader.close()
        return loaded["model"]

    return load


class Aio:
    """DeepSpeed's asynchronous I/O as its swapping to disk uses it: aligned pieces of one file, through two pinned buffers
    of which one is filled or emptied while the other is with the disk. (Its checkpoint writer needs a device.)"""

    BYTES = 64 << 20
    ALIGNMENT = 4096

    def __init__(self):
        import torch
        from deepspeed.ops.op_builder import AsyncIOBuilder

        block, depth, single_submit, overlap, threads = 8 << 20, 32, False, True, 1
        # Compiled at its first use.
        self.handle = AsyncIOBuilder().load(verbose=False).aio_handle(block, depth, single_submit, overlap, threads)
        self.buffers = [self.handle.new_cpu_locked_tensor(self.BYTES, torch.empty(0, dtype=torch.uint8)) for _ in range(2)]

    def image(self, tensors):
        """What goes through each buffer: [(begin in the buffer, bytes of a tensor)]."""
        import torch

        pieces, filled = [], 0
        for tensor in tensors.values():
            data = tensor.reshape(-1).view(torch.uint8)
            while len(data):
                taken = min(len(data), self.BYTES - filled)
                pieces.append((filled, data[:taken]))
                data, filled = data[taken:], filled + taken
                if filled == self.BYTES:
                    yield pieces
                    pieces, filled = [], 0
        if pieces:
            yield pieces

    def padded(self, pieces):
        begin, data = pieces[-1]
        return -(-(begin + len(data)) // self.ALIGNMENT) * self.ALIGNMENT

    def save(self, tensors, path):
        with open(path, "wb"):
            pass
        offset, end = 0, sum(tensor.nbytes for tensor in tensors.values())
        for turn, pieces in enumerate(self.image(tensors)):
            buffer = self.buffers[turn % 2]
            for begin, data in pieces:
                buffer[begin:begin + len(data)].copy_(data)
            if turn:
                self.handle.wait()
            self.handle.async_pwrite(buffer[:self.padded(pieces)], str(path), offset)
            offset += self.padded(pieces)
        self.handle.wait()
        os.truncate(path, end)

    def load(self, tensors, path):
        pending, offset = None, 0
        os.truncate(path, -(-path.stat().st_size // self.ALIGNMENT) * self.ALIGNMENT)  # it reads whole blocks
        for turn, pieces in enumerate([*self.image(tensors), None]):
            if turn:
                self.handle.wait()
            if pieces is not None:
                self.handle.async_pread(self.buffers[turn % 2][:self.padded(pieces)], str(path), offset)
                offset += self.padded(pieces)
            for begin, data in pending or ():
                data.copy_(self.buffers[(turn - 1) % 2][begin:begin + len(data)])
            pending = pieces


@functools.cache
def aio():
    return Aio()


def deepspeed_save(state, directory):
    aio().save(state, directory / "model.bin")


def deepspeed_load(target, directory):
    aio().load(target, directory / "model.bin")
    return target


def fast_save(state, directory):
    from fastsafetensors.saver import ParallelSaver

    ParallelSaver(num_shards=1, num_threads=os.cpu_count() or 1, fsync=True).save(state, str(directory / "model"))


def fast_load(_, directory):
    from fastsafetensors import fastsafe_open

    files = [str(path) for path in sorted(directory.glob("*.safetensors"))]
    with fastsafe_open(files, device="cpu", nogds=True) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}


def streamer_load(_, directory):
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(path) for path in sorted(directory.glob("*.safetensors"))])
        return dict(streamer.get_tensors())


PEERS = {peer.name: peer for peer in (
    Peer("safering, DCP", "safering.torch", dcp_save("safering.torch"), dcp_load("safering.torch"), durable=True),
    Peer("safering, one file", "safering.torch", safering_file_save, safering_file_load, durable=True),
    Peer("PyTorch DCP, Hugging Face", "torch", dcp_save("torch.distributed.checkpoint"), dcp_load("torch.distributed.checkpoint")),
    Peer("safetensors", "safetensors.torch", plain_save, plain_load),
    Peer("torch.save, torch.load", "torch", torch_save, torch_load),
    Peer("torch_checkpointing", "torch_checkpointing", checkpointing_save(own_storage), checkpointing_load(own_storage)),
    Peer("safering, torch_checkpointing", "safering.torch_checkpointing", checkpointing_save(our_storage),
         checkpointing_load(our_storage), durable=True),
    Peer("DeepSpeed, aio", "deepspeed", deepspeed_save, deepspeed_load, prepare=aio),
    Peer("fastsafetensors", "fastsafetensors", fast_save, fast_load),
    Peer("Run:ai model streamer", "runai_model_streamer", None, streamer_load),
)}
OURS = {name for name in PEERS if name.startswith("safering")}


def touch(tensors):
    import torch

    for tensor in tensors.values():
        tensor.reshape(-1).view(torch.uint8)[::4096].sum()


def run(job):
    import torch

    from upstream import measure

    peer = PEERS[job["peer"]]
    directory = Path(job["directory"])
    directory.mkdir()
    if peer.prepare is not None:
        peer.prepare()
    state = make_state({"tensors": "large"}, job["size"], fill=True)
    for index, tensor in enumerate(state.values()):  # values of its own for each element, or a compressing disk would shine
        tensor.reshape(-1).view(torch.int32).random_(0, 1 << 30, generator=torch.Generator().manual_seed(index))
    size = sum(tensor.nbytes for tensor in state.values())
    target = {name: torch.zeros(shape) for name, shape in shapes("large", job["size"]).items()}

    def save():
        peer.save(state, directory)
        if not peer.durable:
            for_each_file(directory, os.fsync)
            descriptor = os.open(directory, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    found = {}

    def load():
        found.update(peer.load(target, directory))
        touch(found)

    results = {}
    if peer.save is None:
        plain_save(state, directory)
        for_each_file(directory, os.fsync)
    else:
        results["save"] = measure(save, size)
    for_each_file(directory, lambda descriptor: os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED))
    time.sleep(PAUSE_SECONDS)
    results["load"] = measure(load, size)
    for name, tensor in state.items():
        if not torch.equal(found[name].reshape(tensor.shape).view(torch.int32), tensor.view(torch.int32)):
            sys.exit(f"{peer.name}: {name} was not loaded as it was saved")
    return results


def main():
    warnings.filterwarnings("ignore")
    job = json.loads(sys.argv[1])
    try:
        importlib.import_module(PEERS[job["peer"]].module)
    except ImportError as error:
        print(json.dumps({"skipped": f"not installed: {error}"}))
        return
    print(json.dumps(run(job)))


if __name__ == "__main__":
    main()
