"""The storage for torch_checkpointing: through that package's own API, and what it promises of each operation."""

from __future__ import annotations

import errno
import io
import os
import pickle
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_checkpointing", reason="torch_checkpointing is not installed")

import ranks
from torch_checkpointing import CheckpointManager, ItemSpec
from torch_checkpointing.checkpoint_layout import JsonSerialization, LayoutInfo, SafetensorsSerialization
from torch_checkpointing.checkpoint_writer import CheckpointWriterConfig
from torch_checkpointing.config import AsyncCheckpointSaverConfig, SyncCheckpointSaverConfig
from torch_checkpointing.default_resharder import DefaultResharder
from torch_checkpointing.staging import CheckpointStagerConfig
from torch_checkpointing.storage.base_storage import ReadArgs

import safering
from safering.torch_checkpointing import SaferingStorage, SaferingStorageConfig

#: In the process itself; and in a process of the package's own, without CUDA.
SYNC = SyncCheckpointSaverConfig()
ASYNC = AsyncCheckpointSaverConfig(
    staging_config=CheckpointStagerConfig(
        use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
    ),
)


def manager(save=SYNC, items=None, backend: str = "automatic") -> CheckpointManager:
    return CheckpointManager(
        CheckpointManager.Config(
            items=items or {}, save=save, storage_config=SaferingStorageConfig(backend=backend)
        )
    )


def model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Embedding(1000, 300), torch.nn.Linear(300, 700), torch.nn.LayerNorm(700))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(params=["automatic", "threads"])
def storage(request) -> SaferingStorage:
    return SaferingStorageConfig(backend=request.param).create_storage()


@pytest.mark.parametrize("backend", ["automatic", "threads"])
@pytest.mark.parametrize("save", [SYNC, ASYNC], ids=["sync", "async"])
def test_a_model_and_its_optimizer_come_back(save, backend, tmp_path):
    trained = model()
    optimizer = torch.optim.AdamW(trained.parameters())
    trained(torch.arange(10)).sum().backward()
    optimizer.step()
    checkpoints = manager(save, {"progress": ItemSpec(layout=LayoutInfo("progress.json", JsonSerialization(None)))}, backend)
    for step in 1, 2:
        payload = {"model": trained.state_dict(), "optimizer": optimizer.state_dict(), "progress": {"step": step}}
        pending = checkpoints.save(str(tmp_path / f"step-{step}"), payload)
        if pending is not None:
            pending.result()
    checkpoints.close()
    assert sorted(os.listdir(tmp_path)) == ["step-1", "step-2"]
    assert sorted(os.listdir(tmp_path / "step-2")) == ["model_0.pt", "optimizer_0.pt", "progress.json"]
    # Any reader of the format reads it.
    assert equal(torch.load(tmp_path / "step-2" / "model_0.pt"), trained.state_dict())
    again = model(1)
    loading = manager(items={"progress": ItemSpec(layout=LayoutInfo("progress.json", JsonSerialization(None)))})
    loaded = loading.load(
        str(tmp_path / "step-2"),
        into={"model": again.state_dict(), "optimizer": optimizer.state_dict(), "progress": {"step": 0}},
        strict=True,
    )
    loading.close()
    assert equal(again.state_dict(), trained.state_dict())
    assert loaded["progress"] == {"step": 2}
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_safetensors_layouts_and_loads_without_mmap(tmp_path):
    layout = LayoutInfo("model.safetensors", SafetensorsSerialization())
    items = {"model": ItemSpec(layout=layout)}
    state = model().state_dict()
    saving = manager(items=items)
    saving.save(str(tmp_path / "step"), {"model": dict(state), "extra": {"x": torch.arange(100_000)}})
    again = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    config = CheckpointManager.Config(items=items, save=SYNC, storage_config=SaferingStorageConfig())
    config.load.use_mmap = False
    loading = CheckpointManager(config)
    loaded = loading.load(str(tmp_path / "step"), into={"model": again, "extra": {"x": torch.zeros(100_000, dtype=torch.int64)}})
    assert equal(again, state)
    assert torch.equal(loaded["extra"]["x"], torch.arange(100_000))


def save_and_load_own(path: str) -> bool:
    rank = torch.distributed.get_rank()
    manager().save(path, {"model": model(rank).state_dict()})
    # The package renames on rank 0, after all have written: elsewhere save returns before that.
    torch.distributed.barrier()
    target = model(7).state_dict()
    manager().load(path, into={"model": target}, strict=True)
    return equal(target, model(rank).state_dict())


def test_each_rank_has_its_files(tmp_path):
    path = tmp_path / "step"
    assert ranks.run(2, save_and_load_own, str(path)) == [True, True]
    assert sorted(os.listdir(path)) == ["model_0.pt", "model_1.pt"]


def reshard(path: str) -> bool:
    # Its metadata of several ranks travels by CUDA only; one rank reshards as well.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    full = torch.arange(512 * 300, dtype=torch.float32).reshape(512, 300)
    items = {"model": ItemSpec(resharder=DefaultResharder())}
    manager(items=items).save(path, {"model": {"weight": distribute_tensor(full, mesh, [Shard(0)])}})
    target = distribute_tensor(torch.zeros(512, 300), mesh, [Shard(1)])
    manager(items=items).load(path, into={"model": {"weight": target}})
    return torch.equal(target.full_tensor(), full)


def test_shards_are_read_from_where_they_lie(tmp_path):
    assert ranks.run(1, reshard, str(tmp_path / "step")) == [True]
    assert sorted(os.listdir(tmp_path / "step")) == ["metadata.pkl", "model_0.pt"]


class Unpicklable:
    def __reduce__(self):
        raise ValueError("not today")


class Killer:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def save_and_die(directory: str) -> None:
    checkpoints = manager()
    checkpoints.save(f"{directory}/step-1", {"model": model().state_dict()})
    storage = SaferingStorage()
    with storage.stream_write(Path(directory) / "step-1" / "model_0.pt") as stream:
        stream.write(bytes(20 << 20))
        checkpoints.save(f"{directory}/step-2", {"model": model().state_dict(), "rest": {"x": Killer()}})


def test_a_save_that_is_killed_leaves_the_older_checkpoint(tmp_path):
    with pytest.raises(ranks.RankDied):
        ranks.run(1, save_and_die, str(tmp_path))
    assert equal(torch.load(tmp_path / "step-1" / "model_0.pt"), model().state_dict())
    assert not (tmp_path / "step-2").exists()
    # What it left in step-1 goes with the next file of that name.
    assert len(os.listdir(tmp_path / "step-1")) == 2
    SaferingStorage().write(tmp_path / "step-1" / "model_0.pt", b"new")
    assert os.listdir(tmp_path / "step-1") == ["model_0.pt"]
    manager().save(str(tmp_path / "step-2"), {"model": model().state_dict()})
    assert equal(torch.load(tmp_path / "step-2" / "model_0.pt"), model().state_dict())


@pytest.mark.parametrize("save", [SYNC, ASYNC], ids=["sync", "async"])
def test_what_cannot_be_serialised_leaves_no_file(save, tmp_path):
    checkpoints = manager(save)
    with pytest.raises(Exception, match="not today"):
        pending = checkpoints.save(str(tmp_path / "step"), {"model": {"x": torch.ones(3), "y": Unpicklable()}})
        if pending is not None:
            pending.result()
    checkpoints.close()
    assert not (tmp_path / "step").exists()
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == []


def limited_save(directory: str) -> None:
    # A file that may not grow stands for a full disk: the write fails after a while, in the background.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
    manager().save(f"{directory}/step-2", {"model": {"x": torch.ones(10 << 20, dtype=torch.uint8)}})


def limited_stream(directory: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
    with SaferingStorage().stream_write(Path(directory) / "file") as stream:
        for _ in range(100):
            stream.write(bytes(1 << 20))


@pytest.mark.parametrize("function", [limited_save, limited_stream])
def test_a_disk_that_takes_no_more_is_told(function, tmp_path):
    manager().save(str(tmp_path / "step-1"), {"model": model().state_dict()})
    with pytest.raises(safering.StorageError, match="File too large") as raised:
        ranks.run(1, function, str(tmp_path))
    assert raised.value.errno == errno.EFBIG and str(tmp_path) in raised.value.filename
    assert equal(torch.load(tmp_path / "step-1" / "model_0.pt"), model().state_dict())
    assert not (tmp_path / "step-2").exists() and not (tmp_path / "file").exists()
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == ["model_0.pt"]


def test_errors_name_the_file_and_keep_their_kind(storage, tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        storage.stream_read(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        storage.stream_write(tmp_path / "none" / "file")
    with pytest.raises(OSError, match="directory"):
        storage.stream_read(tmp_path)
    with pytest.raises(OSError, match="directory"):
        storage.stream_write(tmp_path)
    (tmp_path / "file").write_bytes(b"abc")
    with pytest.raises(OSError, match="expected 4 bytes, found 3"):
        storage.stream_read(tmp_path / "file", ReadArgs(known_size_bytes=4))
    for path in tmp_path / "file", tmp_path / "file" / "below":
        with pytest.raises(OSError):
            storage.mkdir(path)
    with pytest.raises(ValueError, match="backend"):
        SaferingStorageConfig(backend="ioring").create_storage()
    # The package makes an exception in another process from a message.
    assert type(safering.StorageError("message")) is safering.StorageError
    error = pytest.raises(OSError, storage.stream_read, tmp_path / "none").value
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_directory_is_told(storage, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        storage.stream_write(tmp_path / "file")


def test_streams(storage, tmp_path):
    path = tmp_path / "file"
    data = os.urandom(9_000_001)
    with storage.stream_write(path) as stream:
        assert stream.writable() and not stream.readable()
        at = 0
        for size in 1, 10, 4096, 5 << 20, len(data):
            assert stream.write(memoryview(data)[at : at + size]) == min(size, len(data) - at)
            at = min(at + size, len(data))
            assert stream.tell() == at
        assert not path.exists()
    assert stream.closed and path.read_bytes() == data
    with pytest.raises(ValueError, match="closed"):
        stream.write(b"more")
    stream.close()  # again is nothing
    with storage.stream_read(path, ReadArgs(pre_read_full_file=False, direct_io=True)) as stream:
        assert stream.read() == data and stream.read() == b"" and stream.tell() == len(data)
        assert stream.seek(-5, io.SEEK_END) == len(data) - 5
        assert stream.read(3) == data[-5:-2] and stream.read(10) == data[-2:]
        assert stream.seek(100) == 100 and stream.seek(1, io.SEEK_CUR) == 101
        buffer = bytearray(8_000_000)
        assert stream.readinto(buffer) == len(buffer) and buffer == data[101 : 101 + len(buffer)]
        assert stream.seek(len(data) + 5) == len(data) + 5 and stream.readinto(buffer) == 0
        with pytest.raises(ValueError):
            stream.seek(-1)
        with pytest.raises((BufferError, ValueError)):
            stream.readinto(b"not writable")
    with pytest.raises(ValueError, match="closed"):
        stream.read()
    assert storage.read(path) == data and storage.getsize(path) == len(data)
    assert io.BufferedReader(storage.stream_read(path)).read() == data


def test_an_older_file_stays_until_the_stream_is_closed(storage, tmp_path):
    path = tmp_path / "file"
    storage.write(path, b"old")
    with pytest.raises(KeyError):
        with storage.stream_write(path) as stream:
            stream.write(b"new")
            raise KeyError
    stream = storage.stream_write(path)
    stream.write(b"new")
    stream.abandon()
    stream = storage.stream_write(path)
    stream.write(b"new")
    stream.__del__()  # dropped
    del stream
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    storage.write(path, memoryview(bytearray(b"new")))
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]
    storage.write(path, b"")
    assert storage.read(path) == b"" and storage.getsize(path) == 0


def test_several_threads_read_and_write(storage, tmp_path):
    data = [os.urandom(2_000_000 + i) for i in range(16)]

    def one(i: int) -> bool:
        with storage.stream_write(tmp_path / str(i)) as stream:
            for at in range(0, len(data[i]), 300_000):
                stream.write(data[i][at : at + 300_000])
        return storage.read(tmp_path / str(i)) == data[i]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(16)))


def test_more_streams_than_buffers_are_open_together(storage, tmp_path):
    streams = [storage.stream_write(tmp_path / str(i)) for i in range(30)]
    for stream in streams:
        stream.write(b"x" * 1_000_000)
    for stream in reversed(streams):
        stream.close()
    assert {os.path.getsize(tmp_path / str(i)) for i in range(30)} == {1_000_000}


def test_rename_is_as_the_package_has_it(storage, tmp_path):
    def directory(name: str, *files: str) -> Path:
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(name)
        return tmp_path / name

    storage.rename(directory("a", "x"), tmp_path / "b", is_directory=True)
    assert (tmp_path / "b" / "x").read_text() == "a" and not (tmp_path / "a").exists()
    storage.rename(tmp_path / "b", directory("empty"), is_directory=True)
    assert os.listdir(tmp_path / "empty") == ["x"]
    populated, file = directory("populated", "y"), directory("files", "z") / "z"
    for target in populated, file:
        with pytest.raises(OSError, match="is there already"):
            storage.rename(tmp_path / "empty", target, is_directory=True)
    storage.rename(tmp_path / "empty" / "x", tmp_path / "new")
    storage.rename(tmp_path / "new", file)
    assert file.read_text() == "a"
    for target in populated, tmp_path / "empty":
        with pytest.raises(OSError, match="is there already"):
            storage.rename(file, target)
    with pytest.raises(FileNotFoundError):
        storage.rename(tmp_path / "none", tmp_path / "other")


def test_directories(storage, tmp_path):
    storage.mkdir(tmp_path / "a" / "b")
    storage.mkdir(tmp_path / "a" / "b")
    with pytest.raises(FileExistsError):
        storage.mkdir(tmp_path / "a", recursive=False)
    storage.mkdir(tmp_path / "c", recursive=False)
    storage.write(tmp_path / "a" / "b" / "file", b"x")
    assert storage.exists(tmp_path / "a") and storage.isdir(tmp_path / "a") and not storage.isdir(tmp_path / "none")
    assert sorted(storage.ls(tmp_path)) == ["a", "c"]
    assert storage.glob(f"{tmp_path}/a*") == [str(tmp_path / "a")]
    storage.rmdir(tmp_path / "a")
    assert os.listdir(tmp_path) == ["c"]
    (tmp_path / f".a.{'0' * 32}.rmdir" / "b").mkdir(parents=True)  # as a kill leaves it
    storage.mkdir(tmp_path / "a")
    storage.rmdir(tmp_path / "a")
    assert os.listdir(tmp_path) == ["c"]
    with pytest.raises(FileNotFoundError):
        storage.rmdir(tmp_path / "a")
    storage.write(tmp_path / "file", b"x")
    with pytest.raises(NotADirectoryError):
        storage.rmdir(tmp_path / "file")
    storage.delete(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        storage.delete(tmp_path / "file")
    assert storage.remap_path(tmp_path) == str(tmp_path)


def test_tensors_are_allocated_before_they_are_written(tmp_path):
    from safering.torch_checkpointing import _tensor_bytes

    shared = torch.ones(1000)
    assert _tensor_bytes({"a": shared, "b": [shared[:10], (shared.view(10, 100),)], "step": 3}) - 4000 == 64 << 10
    assert _tensor_bytes({"step": 3}) == 0 and _tensor_bytes(shared.to_sparse()) == 0


def test_a_writer_that_asks_for_one_rank_and_threads(tmp_path):
    config = SyncCheckpointSaverConfig(writer_config=CheckpointWriterConfig(file_write_max_threads=4))
    payload = {f"part{i}": {"x": torch.full((500_000,), i)} for i in range(6)}
    manager(config).save(str(tmp_path / "step"), payload)
    for i in range(6):
        assert torch.equal(torch.load(tmp_path / "step" / f"part{i}_0.pt")["x"], payload[f"part{i}"]["x"])
