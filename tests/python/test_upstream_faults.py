"""What torch's own class gets wrong: every fault is a test that fails there and passes on ours.

Strict: should a later torch mend one of these, the test says so. What is merely slow there (planning many small
tensors) is measured by the benchmark.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import init_from_local_shards
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import Shard, init_device_mesh

from ranks import RankDied, outcomes, run
from states import (
    SAFERING,
    TORCH,
    Implementation,
    State,
    assert_same,
    files_in,
    load,
    load_full,
    load_keys,
    numbers,
    place,
    random_bits,
    save,
)

CONSOLIDATED = {"save_distributed": True, "enable_consolidation": True}
SHARDED = {"save_distributed": True}
NOT_RAISED = pytest.fail.Exception


def fault(reason: str, raises=AssertionError):
    """The test runs on torch's classes, where it must fail for this reason and in this way, and on ours."""
    return pytest.mark.parametrize(
        "classes",
        [
            pytest.param(TORCH, id="torch", marks=pytest.mark.xfail(strict=True, raises=raises, reason=reason)),
            pytest.param(SAFERING, id="safering"),
        ],
    )


def write_shard(path: pathlib.Path, number: int, tensors: State, offsets: dict[str, list[int]]) -> None:
    """A file as torch's class writes it."""
    info = {name: {"saved_offsets": offset} for name, offset in offsets.items()}
    metadata = {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0", "format": "pt"}
    path.mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, path / f"shard-{number:05d}-model-00001-of-00001.safetensors", metadata)


# On ranks


def save_placed(writer, path, full: State, options: dict, dim: int = 0, planner=None) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {name: place(tensor, mesh, [Shard(dim)]) for name, tensor in full.items()}
    dcp.save(state, storage_writer=writer(str(path), **options), planner=planner)


def save_local_shards(writer, path, shards: list[tuple[int, torch.Tensor]], rows: int, options: dict) -> None:
    local = [LocalShard.from_tensor_and_offsets(tensor, [row, 0], dist.get_rank()) for row, tensor in shards]
    state = {"w": init_from_local_shards(local, (rows, shards[0][1].shape[1]))}
    dcp.save(state, storage_writer=writer(str(path), **options))


class FailingPlanner(dcp.DefaultSavePlanner):
    """Has no data for `name`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def resolve_data(self, write_item):
        if write_item.index.fqn == self.name:
            raise OSError("no such data")
        return super().resolve_data(write_item)


class DyingPlanner(dcp.DefaultSavePlanner):
    """Takes its process with it once the ranks have agreed on a plan."""

    def finish_plan(self, new_plan):
        os.kill(os.getpid(), signal.SIGKILL)


# Consolidation


@fault("consolidation returns early for tensors without dimensions")
@pytest.mark.parametrize("value", [torch.tensor(3.5), torch.tensor(-2.0, dtype=torch.bfloat16)], ids=["f32", "bf16"])
def test_scalar_keeps_its_value_in_final_files(tmp_path, classes, value):
    save(tmp_path, {"s": value}, classes, **CONSOLIDATED)
    assert_same(load_full(tmp_path), {"s": value})


@fault("consolidation asks torch.finfo for the size of an element", raises=CheckpointException)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_integers_and_bools_reach_final_files(tmp_path, classes, dtype):
    state = {"t": random_bits((5, 3), dtype)}
    save(tmp_path, state, classes, **CONSOLIDATED)
    assert_same(load_full(tmp_path), state)


@fault("consolidation takes a complex64 for 4 bytes", raises=(AssertionError, SafetensorError))
def test_complex_numbers_reach_final_files(tmp_path, classes):
    state = {"c": random_bits((6, 5), torch.complex64)}
    save(tmp_path, state, classes, **CONSOLIDATED)
    assert_same(load_full(tmp_path), state)


@fault("a name that is mapped and never saved gets a header entry without dtype", raises=SafetensorError)
def test_mapped_but_not_saved_is_left_out(tmp_path, classes):
    state = {"w": numbers(4, 3)}
    save(tmp_path, state, classes, fqn_to_index_mapping={"w": 1, "lm_head": 1}, **CONSOLIDATED)
    assert_same(load_full(tmp_path), state)


# torch's writer raises a bare KeyError here; that such a tensor vanishes shows in its consolidation alone.
@pytest.mark.parametrize("options", [{}, SHARDED, CONSOLIDATED], ids=["full", "sharded", "consolidated"])
def test_saved_but_not_mapped_is_named(tmp_path, options):
    with pytest.raises(CheckpointException) as caught:
        save(tmp_path, {"w": numbers(4), "forgotten": numbers(4)}, SAFERING, fqn_to_index_mapping={"w": 1}, **options)
    assert "forgotten" in str(caught.value) and "not in fqn_to_index_mapping" in str(caught.value)


@fault("files of an earlier save with more ranks stay in `sharded` and are consolidated too")
def test_final_files_hold_this_save_alone(tmp_path, classes):
    run(2, save_placed, classes.writer, tmp_path, {"w": numbers(8, 2)}, CONSOLIDATED)
    state = {"w": numbers(4, 2, start=100)}
    save(tmp_path, state, classes, **CONSOLIDATED)
    assert_same(load_full(tmp_path), state)


def bytes_written(writer, path, rows: int) -> int:
    """By this rank, while it saves its part of `rows` rows of 4 KiB."""

    def written() -> int:
        return int(pathlib.Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])

    # Of this process's own threads, where /proc counts them.
    extra = {"backend": "threads"} if writer is SAFERING.writer else {}
    before = written()
    save_placed(writer, path, {"w": torch.zeros(rows, 1024)}, CONSOLIDATED | extra)
    return written() - before


@fault("rank 0 writes all final files by itself while the others wait")
def test_ranks_share_the_work(tmp_path, classes):
    total = 4000 * 4096
    written = run(2, bytes_written, classes.writer, tmp_path / "c", 4000)
    assert sum(written) >= total
    assert max(written) < 0.75 * total


def extra_memory(writer, path, size: int) -> int:
    """Bytes by which this process's peak exceeds what it had before a save of `size` bytes."""

    def resident(line: str) -> int:
        return int(pathlib.Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) * 1024

    state = {"w": torch.ones(size // 4)}
    save(path.with_name("warm"), {"w": torch.ones(1000)}, Implementation(writer, None), **CONSOLIDATED)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    save(path, state, Implementation(writer, None), **CONSOLIDATED)
    return resident("VmHWM") - before


@fault("a file is built in memory once to be written and once to be consolidated")
def test_memory_is_bounded(tmp_path, classes):
    size = 160 << 20
    assert run(1, extra_memory, classes.writer, tmp_path / "c", size)[0] < size // 2


def python_calls(writer, path, rows: int) -> int:
    """On the coordinator, while it saves a tensor of so many rows that is sharded by columns."""
    calls = 0

    def count(frame, event, argument) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        save_placed(writer, path, {"w": numbers(rows, 4)}, CONSOLIDATED, 1)
    finally:
        sys.setprofile(None)
    return calls


@fault("consolidation copies columns row by row in Python")
def test_columns_are_not_copied_in_python(tmp_path, classes):
    few = run(2, python_calls, classes.writer, tmp_path / "few", 10)[0]
    many = run(2, python_calls, classes.writer, tmp_path / "many", 5010)[0]
    assert many < few + 5000


# Says with its inode which file or directory is synced.
INTERPOSER = r"""
#include <sys/stat.h>
#include <sys/syscall.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static int note(int file, long call) {
    struct stat status;
    FILE* log = fopen(getenv("SYNC_LOG"), "a");
    fstat(file, &status);
    fprintf(log, "%lu\n", (unsigned long)status.st_ino);
    fclose(log);
    return syscall(call, file);
}
int fsync(int file) { return note(file, SYS_fsync); }
int fdatasync(int file) { return note(file, SYS_fdatasync); }
"""

SAVE_ONCE = """
import sys, torch
from states import SAFERING, TORCH, save
implementation, path = sys.argv[1:]
classes, extra = (TORCH, {}) if implementation == "torch" else (SAFERING, {"backend": "threads"})
save(path, {"w": torch.ones(100, 7)}, classes, save_distributed=True, enable_consolidation=True, **extra)
"""


@pytest.fixture(scope="session")
def interposer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("interposer")
    library = directory / "interposer.so"
    subprocess.run(
        ["g++", "-x", "c", "-shared", "-fPIC", "-o", library, "-"], input=INTERPOSER, text=True, check=True
    )
    return library


@fault("final files and the index are never synced, nor is any directory")
def test_checkpoint_is_durable(tmp_path, classes, interposer):
    path, log = tmp_path / "c", tmp_path / "log"
    log.touch()
    environment = os.environ | {
        "LD_PRELOAD": str(interposer),
        "SYNC_LOG": str(log),
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path]),
    }
    name = "torch" if classes is TORCH else "safering"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SAVE_ONCE, name, path], env=environment, check=True, timeout=120
    )
    synced = set(map(int, log.read_text().split()))
    assert len(files_in(path)) == 1
    final = [file for file in path.iterdir() if file.is_file()]
    missing = [file.name for file in [*final, path, tmp_path] if file.stat().st_ino not in synced]
    assert not missing


# Writing


@fault(
    "of several chunks of a tensor on one rank only the last is stored", raises=(AssertionError, CheckpointException)
)
@pytest.mark.parametrize("options", [SHARDED, CONSOLIDATED], ids=["sharded", "consolidated"])
def test_every_local_shard_is_stored(tmp_path, classes, options):
    whole = numbers(7, 3)
    shards = [(0, whole[0:2]), (2, whole[2:6]), (6, whole[6:7])]
    run(1, save_local_shards, classes.writer, tmp_path / "c", shards, 7, options)
    assert_same(load(tmp_path / "c", {"w": whole}, classes), {"w": whole})


class FailingOffMainThread(dcp.DefaultSavePlanner):
    """The main thread is slow, so that others, where there are any, come to `bad`."""

    def resolve_data(self, write_item):
        if threading.current_thread() is threading.main_thread():
            time.sleep(0.2)
        if write_item.index.fqn == "bad":
            raise OSError("cannot read bad")
        return super().resolve_data(write_item)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@fault("an error in one of its threads ends the thread and nothing else", raises=NOT_RAISED)
def test_error_of_a_worker_fails_the_save(tmp_path, classes):
    mapping = {"a": 1, "b": 2, "bad": 3}
    with pytest.raises(CheckpointException, match="cannot read bad"):
        dcp.save(
            {name: numbers(4) for name in mapping},
            storage_writer=classes.writer(str(tmp_path / "c"), mapping, 2),
            planner=FailingOffMainThread(),
            no_dist=True,
        )


@fault("objects are written in front of the header", raises=NOT_RAISED)
def test_objects_are_refused(tmp_path, classes):
    with pytest.raises(CheckpointException) as caught:
        save(tmp_path / "c", {"w": numbers(4), "epoch": 3}, classes)
    assert "TypeError" in str(caught.value) and "epoch" in str(caught.value)
    assert not (tmp_path / "c").exists()


@fault("its memory is stored without the conjugation or the sign")
@pytest.mark.parametrize(
    "tensor",
    [random_bits((5, 4), torch.int16).float().view(5, 2, 2), numbers(5, 4)],
    ids=["conjugate", "negative"],
)
def test_views_are_resolved(tmp_path, classes, tensor):
    state = {"t": torch.view_as_complex(tensor).conj() if tensor.dim() == 3 else torch._neg_view(tensor)}
    save(tmp_path, state, classes)
    assert_same(load_full(tmp_path), state)


def save_same(writer, path, state: State) -> None:
    dcp.save(state, storage_writer=writer(str(path)))


@fault("all ranks write the same file, and each only what it was given to write")
def test_full_state_of_two_ranks(tmp_path, classes):
    state = {name: numbers(5, 3, start=10 * i) for i, name in enumerate("abcd")}
    run(2, save_same, classes.writer, tmp_path / "c", state)
    assert_same(load_full(tmp_path / "c"), state)


def save_with_cached_plans(writer, path) -> None:
    state = {"a": numbers(4), "b": numbers(4)}
    for mapping in ({"a": 1, "b": 1}, {"a": 1, "b": 2}):
        dcp.save(
            state,
            storage_writer=writer(str(path), mapping),
            planner=dcp.DefaultSavePlanner(enable_plan_caching=True),
        )


@fault("a cached plan brings back the storage_data of the first save")
def test_cached_plan_does_not_carry_the_mapping(tmp_path, classes):
    run(1, save_with_cached_plans, classes.writer, tmp_path / "c")
    weights = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())["weight_map"]
    assert weights == {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


# An older checkpoint


def save_twice(writer, path, options: dict) -> None:
    """The second save is of other values and fails on rank 1."""
    save_placed(writer, path, {"a": numbers(8, 2), "z": numbers(8, 3)}, options)
    planner = FailingPlanner("z") if dist.get_rank() == 1 else None
    with pytest.raises(CheckpointException):
        save_placed(writer, path, {"a": -numbers(8, 2), "z": -numbers(8, 3)}, options, 0, planner)


@fault(
    "files are truncated and written under their final names",
    raises=(AssertionError, CheckpointException, SafetensorError),
)
@pytest.mark.parametrize("options", [SHARDED, CONSOLIDATED], ids=["sharded", "consolidated"])
def test_failed_save_leaves_the_older_checkpoint(tmp_path, classes, options):
    path = tmp_path / "c"
    run(2, save_twice, classes.writer, path, options)
    state = {"a": numbers(8, 2), "z": numbers(8, 3)}
    # torch's class would have its shards read here, from which it makes the final files.
    shards = path / "sharded" if classes is TORCH and options is CONSOLIDATED else path
    assert_same(load(shards, state, classes), state)


def save_and_die(writer, path, full: State) -> None:
    planner = DyingPlanner() if dist.get_rank() == 1 else None
    save_placed(writer, path, full, SHARDED, 0, planner)


@fault("nothing marks a save as complete: what a part of the ranks wrote loads as a shorter tensor", raises=NOT_RAISED)
def test_half_a_save_is_no_checkpoint(tmp_path, classes):
    died = outcomes(2, save_and_die, classes.writer, tmp_path / "c", {"w": numbers(8, 2)})
    assert isinstance(died[1], RankDied) and isinstance(died[0], BaseException)
    with pytest.raises(CheckpointException, match="no checkpoint here"):
        load_keys(tmp_path / "c", {"w"}, classes)


def save_over_mapped(writer, path, name: str) -> None:
    mapped = safetensors.torch.load_file(path / name)
    save(path, mapped, Implementation(writer, None))


@fault("the file is truncated first, and its mapped pages are gone: SIGBUS", raises=RankDied)
def test_saving_what_the_file_holds(tmp_path, classes):
    state = {"w": torch.ones(300_000)}
    save(tmp_path / "c", state, classes)
    run(1, save_over_mapped, classes.writer, tmp_path / "c", "model-00001-of-00001.safetensors")
    assert_same(load_full(tmp_path / "c"), state)


# Reading


def saved_by_two(classes: Implementation, path: pathlib.Path, full: State) -> None:
    run(2, save_placed, classes.writer, path, full, SHARDED)
    assert len(files_in(path)) == 2


@fault("what no chunk covers is left as it was", raises=NOT_RAISED)
def test_lost_shard_is_an_error(tmp_path, classes):
    full = {"w": numbers(8, 2)}
    saved_by_two(classes, tmp_path / "c", full)
    (tmp_path / "c" / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointException, match="shard-00001|cover"):
        load(tmp_path / "c", full, classes)


@fault("a tensor is taken to end where its last known chunk ends", raises=NOT_RAISED)
def test_lost_last_shard_is_an_error(tmp_path, classes):
    saved_by_two(classes, tmp_path / "c", {"w": numbers(8, 2)})
    (tmp_path / "c" / "shard-00002-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointException, match="shard-00002"):
        load_keys(tmp_path / "c", {"w"}, classes)


@fault("files of an earlier save with more ranks stay, and are read")
def test_shards_of_this_save_alone(tmp_path, classes):
    saved_by_two(classes, tmp_path / "c", {"w": numbers(8, 2)})
    state = {"w": numbers(4, 2, start=100)}
    save(tmp_path / "c", state, classes, **SHARDED)
    assert files_in(tmp_path / "c") == ["shard-00001-model-00001-of-00001.safetensors"]
    assert_same(load(tmp_path / "c", state, classes), state)


@fault("what no chunk covers is left as it was", raises=NOT_RAISED)
def test_hole_between_chunks_is_an_error(tmp_path, classes):
    write_shard(tmp_path / "c", 1, {"w": numbers(2, 2)}, {"w": [0, 0]})
    write_shard(tmp_path / "c", 2, {"w": numbers(2, 2)}, {"w": [4, 0]})
    with pytest.raises(CheckpointException, match='tensor "w"'):
        load(tmp_path / "c", {"w": numbers(6, 2)}, classes)


@fault("the index is never read", raises=(AssertionError, CheckpointException))
def test_index_decides_which_file_counts(tmp_path, classes):
    state = {"w": numbers(4, 2)}
    safetensors.torch.save_file(state, tmp_path / "model-00001-of-00001.safetensors")
    safetensors.torch.save_file({"w": numbers(6, 2)}, tmp_path / "stray.safetensors")
    index = {"metadata": {"total_size": 32}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load(tmp_path, state, classes), state)


@fault("one tensor of a dtype that it does not know makes the directory unreadable", raises=CheckpointException)
@pytest.mark.parametrize("dtype, bits", [("F8_E8M0", 8), ("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)])
def test_unknown_dtype_does_not_hide_the_others(tmp_path, classes, dtype, bits):
    header = json.dumps(
        {
            "w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "odd": {"dtype": dtype, "shape": [8], "data_offsets": [12, 12 + bits]},
        }
    ).encode()
    data = bytes(numbers(3).numpy().tobytes()) + bytes(bits)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    state = {"w": numbers(3)}
    assert_same(load(tmp_path, state, classes), state)


@fault("negative offsets are taken as they are", raises=NOT_RAISED)
def test_negative_offsets_are_refused(tmp_path, classes):
    write_shard(tmp_path / "c", 1, {"w": numbers(4, 2)}, {"w": [0, 0]})
    write_shard(tmp_path / "c", 2, {"w": numbers(2, 2)}, {"w": [-2, 0]})
    with pytest.raises(CheckpointException, match='tensor "w"'):
        load_keys(tmp_path / "c", {"w"}, classes)


@fault("offsets of more dimensions than the tensor has are taken as they are", raises=NOT_RAISED)
def test_overlong_offsets_are_refused(tmp_path, classes):
    write_shard(tmp_path / "c", 1, {"w": numbers(4, 2)}, {"w": [0, 0, 5]})
    with pytest.raises(CheckpointException, match='tensor "w"'):
        load_keys(tmp_path / "c", {"w"}, classes)


@fault("the dtype of the first file counts for all", raises=NOT_RAISED)
def test_shards_that_disagree_on_the_dtype_are_refused(tmp_path, classes):
    write_shard(tmp_path / "c", 1, {"w": numbers(4, 2)}, {"w": [0, 0]})
    write_shard(tmp_path / "c", 2, {"w": numbers(4, 2).to(torch.float16)}, {"w": [4, 0]})
    with pytest.raises(CheckpointException, match='tensor "w"'):
        load_keys(tmp_path / "c", {"w"}, classes)


class TruncatingPlanner(dcp.DefaultLoadPlanner):
    """Cuts the file short once it has been opened: when torch's reader asks where its bytes go, and when ours is to
    read."""

    def __init__(self, file: pathlib.Path, reader) -> None:
        super().__init__()
        self.file = file
        self.reader = reader

    def finish_plan(self, new_plan):
        if isinstance(self.reader, SAFERING.reader):
            os.truncate(self.file, 4096)
        return super().finish_plan(new_plan)

    def resolve_tensor(self, read_item):
        os.truncate(self.file, 4096)
        return super().resolve_tensor(read_item)


def load_while_truncated(kind, path) -> None:
    file = next(path.glob("*.safetensors"))
    reader = kind(str(path))
    with pytest.raises(CheckpointException, match=file.name):
        dcp.load({"w": torch.zeros(300_000)}, storage_reader=reader, planner=TruncatingPlanner(file, reader))


@fault("a file that is cut short while it is mapped: SIGBUS", raises=RankDied)
def test_file_that_is_cut_short_is_an_error(tmp_path, classes):
    safetensors.torch.save_file({"w": torch.ones(300_000)}, tmp_path / "model.safetensors")
    run(1, load_while_truncated, classes.reader, tmp_path)
