"""What goes wrong: an exception on every rank that says where and why, and no harm to what was there."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadItemType
from torch.distributed.tensor import Shard, init_device_mesh

import safering
import safering.torch
from ranks import RankDied, outcomes, run
from states import LAYOUTS, SAFERING, State, assert_same, load, numbers, place, save

WHOLE = {"a": numbers(8, 4), "z": numbers(6, 5)}
OTHER = {name: -tensor for name, tensor in WHOLE.items()}


def save_placed(path, full: State, options: dict, **arguments) -> None:
    """On every rank, sharded by rows."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {name: place(tensor, mesh, [Shard(0)]) for name, tensor in full.items()}
    dcp.save(state, storage_writer=SAFERING.writer(str(path), **options), **arguments)


def failures_of(function, *args, **arguments) -> dict[int, tuple[str, str]]:
    """rank -> (type, message) of what went wrong there, as this rank was told."""
    try:
        function(*args, **arguments)
    except CheckpointException as caught:
        return {rank: (type(error).__name__, str(error)) for rank, (error, _) in caught.failures.items()}
    raise AssertionError("no exception")


def agreed(told: list[dict]) -> dict[int, tuple[str, str]]:
    """What all ranks were told alike."""
    assert told and all(one == told[0] for one in told)
    return told[0]


def causes(failed: dict[int, tuple[str, str]]) -> dict[int, tuple[str, str]]:
    """Without ranks that failed because another one in their exchange did, which they name with its reason."""
    others = {rank for rank, (_, text) in failed.items() if "another rank of this host" in text}
    found = {rank: told for rank, told in failed.items() if rank not in others}
    assert all(any(text[-60:] in failed[rank][1] for _, text in found.values()) for rank in others)
    return found


def attempts_beside(path: pathlib.Path) -> list[str]:
    return [name for name in os.listdir(path.parent) if name.startswith(f".{path.name}.")]


def assert_old_is_whole(path: pathlib.Path, options: dict | None = None) -> None:
    """The older checkpoint loads, and the next save succeeds and leaves nothing of those that failed."""
    assert_same(load(path, WHOLE), WHOLE)
    save(path, OTHER, **(options or {}))
    assert_same(load(path, OTHER), OTHER)
    assert os.listdir(path.parent) == [path.name]


# Refused before anything is written


def save_objects(path, options: dict) -> dict:
    state = {"w": numbers(4), "epoch": 3} if dist.get_rank() == 1 else {"w": numbers(4)}
    return failures_of(dcp.save, state, storage_writer=SAFERING.writer(str(path), **options))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_objects(tmp_path, layout):
    told = agreed(run(2, save_objects, tmp_path / "c", LAYOUTS[layout]))
    assert told.keys() == {1}
    kind, message = told[1]
    assert kind == "TypeError" and "'epoch'" in message
    assert os.listdir(tmp_path) == []


class AsBytes(DefaultLoadPlanner):
    """Wants `a` as an object."""

    def create_local_plan(self):
        plan = super().create_local_plan()
        items = [dataclasses.replace(i, type=LoadItemType.BYTE_IO) if i.dest_index.fqn == "a" else i for i in plan.items]
        return dataclasses.replace(plan, items=items)


def load_objects(path, function, planner, value) -> dict:
    state = {name: torch.zeros_like(tensor) for name, tensor in WHOLE.items()}
    if dist.get_rank() == 1 and value is not None:
        state["a"] = value
    return failures_of(function, state, storage_reader=SAFERING.reader(str(path)), planner=planner)


@pytest.mark.parametrize(
    "function, planner, value, kind",
    [
        (safering.torch.load, None, io.BytesIO(b"x"), "TypeError"),
        (safering.torch.load, safering.torch.DefaultLoadPlanner(), 7, "TypeError"),
        (dcp.load, safering.torch.DefaultLoadPlanner(), b"x", "TypeError"),
        (dcp.load, AsBytes(), None, "TypeError"),
        (dcp.load, None, 7, "ValueError"),  # torch's planner finds it first
    ],
)
def test_objects_to_load(tmp_path, function, planner, value, kind):
    save(tmp_path / "c", WHOLE)
    told = agreed(run(2, load_objects, tmp_path / "c", function, planner, value))
    assert told.keys() == ({0, 1} if value is None else {1})
    assert told[1][0] == kind and re.search(r"\ba\b", told[1][1])
    assert_old_is_whole(tmp_path / "c")


def save_unmapped(path, options: dict) -> dict:
    return failures_of(save_placed, path, WHOLE, options | {"fqn_to_index_mapping": {"a": 1}})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_name_that_the_mapping_lacks(tmp_path, layout):
    told = agreed(run(2, save_unmapped, tmp_path / "c", LAYOUTS[layout]))
    assert told.keys() == {0} and told[0][0] == "Error"
    assert 'tensor "z"' in told[0][1] and "fqn_to_index_mapping" in told[0][1]
    assert os.listdir(tmp_path) == []


def test_path_that_is_a_file(tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(CheckpointException, match="tmp|directory"):
        save(tmp_path / "c", WHOLE)
    assert (tmp_path / "c").read_text() == "mine" and os.listdir(tmp_path) == ["c"]


def test_options_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match="backend must be"):
        save(tmp_path / "c", WHOLE, backend="carrier pigeon")
    with pytest.raises(ValueError, match="verification must be"):
        dcp.load(dict(WHOLE), storage_reader=SAFERING.reader(str(tmp_path), verification="some"))


# Refused while writing


def hide(directory: pathlib.Path) -> None:
    """Puts another file system over it, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newns, ms_rec, ms_private = 0x00020000, 0x4000, 1 << 18
    for call in (
        lambda: libc.unshare(clone_newns),
        lambda: libc.mount(b"none", b"/", None, ms_rec | ms_private, None),
        lambda: libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", 0, b"size=1m"),
    ):
        if call() != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))


def save_hidden(path) -> dict | str:
    refused = None
    if dist.get_rank() == 1:
        try:
            hide(path.parent)
        except OSError as error:
            refused = str(error)
    answers = [None] * dist.get_world_size()
    dist.all_gather_object(answers, refused)
    if answers[1]:
        return answers[1]
    return failures_of(save_placed, path, OTHER, {})


def test_rank_that_does_not_see_the_directory(tmp_path):
    path = tmp_path / "c"
    save(path, WHOLE)
    told = run(2, save_hidden, path)
    if isinstance(told[0], str):
        pytest.skip(f"a mount namespace is refused: {told[0]}")
    failed = causes(agreed(told))
    assert failed.keys() == {1}
    assert str(path.parent) in failed[1][1] and "this rank does not see it" in failed[1][1]
    assert_old_is_whole(path)


def save_relative(directory) -> dict:
    mine = directory / f"{dist.get_rank()}"
    mine.mkdir()
    os.chdir(mine)
    return failures_of(save_placed, "c", WHOLE, {})


def test_ranks_that_mean_different_directories(tmp_path):
    failed = causes(agreed(run(2, save_relative, tmp_path)))
    assert failed.keys() == {1}
    assert str(tmp_path / "0" / "c") in failed[1][1] and str(tmp_path / "1" / "c") in failed[1][1]
    assert os.listdir(tmp_path / "1") == []


class FailingPlanner(dcp.DefaultSavePlanner):
    def resolve_data(self, write_item):
        raise OSError(f"no data for {write_item.index.fqn}")


def save_failing(path, options: dict) -> dict:
    planner = FailingPlanner() if dist.get_rank() == 1 else None
    return failures_of(save_placed, path, OTHER, options, planner=planner)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_planner_that_fails(tmp_path, layout):
    path = tmp_path / "c"
    run(2, save_placed, path, WHOLE, LAYOUTS[layout])
    failed = causes(agreed(run(2, save_failing, path, LAYOUTS[layout])))
    assert failed.keys() == {1} and failed[1] == ("OSError", "no data for a")
    assert_old_is_whole(path, LAYOUTS[layout])


class WrongTensorPlanner(dcp.DefaultSavePlanner):
    def resolve_data(self, write_item):
        return super().resolve_data(write_item).to(torch.float64)


class WrongShapePlanner(dcp.DefaultSavePlanner):
    def resolve_data(self, write_item):
        return super().resolve_data(write_item)[1:]


@pytest.mark.parametrize("planner, what", [(WrongTensorPlanner, "F64"), (WrongShapePlanner, r"\[7,4\]")])
def test_tensor_that_is_not_as_planned(tmp_path, planner, what):
    save(tmp_path / "c", WHOLE)
    with pytest.raises(CheckpointException, match=f'tensor "a".*{what}'):
        dcp.save(dict(OTHER), storage_writer=SAFERING.writer(str(tmp_path / "c")), planner=planner())
    assert_old_is_whole(tmp_path / "c")


class DroppingWriter(SAFERING.writer):
    """Loses what rank 1 wrote of the results."""

    def finish(self, metadata, results):
        super().finish(metadata, results[:1])


class RepeatingWriter(SAFERING.writer):
    def finish(self, metadata, results):
        super().finish(metadata, [results[0], results[0]])


class PlainListWriter(SAFERING.writer):
    """Hands on the results and not what comes with them."""

    def finish(self, metadata, results):
        super().finish(metadata, [list(result) for result in results])


class OlderResultsWriter(SAFERING.writer):
    """Hands on those of the save before."""

    def finish(self, metadata, results):
        kept = pathlib.Path(str(self.path) + ".results")
        if not kept.exists():
            kept.write_bytes(pickle.dumps(results))
            super().finish(metadata, results)
        else:
            super().finish(metadata, pickle.loads(kept.read_bytes()))


def save_with(cls, path, full: State) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {name: place(tensor, mesh, [Shard(0)]) for name, tensor in full.items()}
    dcp.save(state, storage_writer=cls(str(path)))


def failures_with(cls, path, full: State) -> dict:
    return failures_of(save_with, cls, path, full)


@pytest.mark.parametrize(
    "cls, what",
    [
        (DroppingWriter, "results of rank 1 are missing"),
        (RepeatingWriter, "results of rank 0 came twice"),
        (PlainListWriter, "results of rank 0"),
        (OlderResultsWriter, "attempt"),
    ],
)
def test_results_that_differ_from_the_plan(tmp_path, cls, what):
    path = tmp_path / "d" / "c"
    run(2, save_with, cls if cls is OlderResultsWriter else SAFERING.writer, path, WHOLE)
    failed = agreed(run(2, failures_with, cls, path, OTHER))
    assert failed.keys() == {0}
    with contextlib.suppress(FileNotFoundError):
        path.with_name("c.results").unlink()
    assert what in failed[0][1]
    assert_old_is_whole(path)


def save_limited(path, options: dict) -> dict:
    """Rank 1 may not write beyond the first 64 KiB of a file."""
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
    return failures_of(save_placed, path, {"a": torch.ones(500, 1000), "z": torch.ones(300, 1000)}, options)


@pytest.mark.parametrize("backend", ["automatic", "threads"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rank_that_cannot_write(tmp_path, layout, backend):
    path = tmp_path / "c"
    save(path, WHOLE)
    failed = agreed(run(2, save_limited, path, LAYOUTS[layout] | {"backend": backend}))
    # The coordinator makes the files of all ranks, and is not limited.
    assert failed.keys() == {1} and failed[1][0] == "StorageError"
    assert os.strerror(errno.EFBIG) in failed[1][1] and ".safetensors" in failed[1][1]
    assert_old_is_whole(path)


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a file system of 2 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", directory], capture_output=True, text=True
    )
    if mount.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {mount.stderr.strip()}")
    yield directory
    # Lazily: an exception that lives on in a cycle of references may hold a writer, and that its attempt.
    subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_mount_point_is_no_target(small_disk):
    with pytest.raises(CheckpointException, match=f"{small_disk}.*a file system is mounted here.*inside the mount"):
        save(small_disk, WHOLE)
    assert os.listdir(small_disk) == [] and os.listdir(small_disk.parent) == [small_disk.name]
    with pytest.raises(RuntimeError, match="a file system is mounted here"), safering.torch.AsyncSaver() as saver:
        saver.save(WHOLE, small_disk).result(60)
    save(small_disk / "c", WHOLE)
    assert_old_is_whole(small_disk / "c")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_disk(small_disk, layout):
    path = small_disk / "c"
    save(path, WHOLE)
    failed = failures_of(save, path, {"a": torch.ones(1 << 20)}, **LAYOUTS[layout])
    assert failed[0][0] == "StorageError" and os.strerror(errno.ENOSPC) in failed[0][1]
    assert str(path.parent) in failed[0][1]
    assert_old_is_whole(path)


def test_storage_error_is_an_os_error(small_disk):
    with pytest.raises(CheckpointException) as caught:
        save(small_disk / "c", {"a": torch.ones(1 << 20)})
    error = caught.value.failures[0][0]
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(one, OSError) and isinstance(one, safering.Error)
        assert one.errno == errno.ENOSPC and one.reason and str(one) == str(error)


# Processes that end in the middle


class DyingPlanner(dcp.DefaultSavePlanner):
    def resolve_data(self, write_item):
        os.kill(os.getpid(), signal.SIGKILL)


def save_dying(path, victims: list[int]) -> None:
    save_placed(path, OTHER, {}, planner=DyingPlanner() if dist.get_rank() in victims else None)


@pytest.mark.parametrize("victims", [[0], [1], [0, 1]], ids=str)
def test_ranks_that_are_killed(tmp_path, victims):
    path = tmp_path / "c"
    run(2, save_placed, path, WHOLE, {})
    ended = outcomes(2, save_dying, path, victims)
    assert all(isinstance(ended[rank], RankDied) for rank in victims)
    assert all(isinstance(one, BaseException) for one in ended)
    assert_old_is_whole(path)


INTERRUPTED = """
import signal, sys, time, torch
from states import save
# A shell's background jobs are started with the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
def progress(done, total):
    print(done < total, flush=True)
    time.sleep(60)
save(sys.argv[1], {"w": torch.ones(1 << 26)}, progress=progress)
"""


@pytest.mark.parametrize("older", [False, True], ids=["new", "older"])
def test_interrupt_from_the_keyboard(tmp_path, older):
    path = tmp_path / "c"
    if older:
        save(path, WHOLE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", INTERRUPTED, path],
        env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == "True\n"
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0 and "KeyboardInterrupt" in stderr
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert attempts_beside(path) == []
    if older:
        assert_old_is_whole(path)
    else:
        assert os.listdir(tmp_path) == []


def save_in_background(path) -> tuple:
    future = dcp.async_save(
        {"w": numbers(4)}, storage_writer=SAFERING.writer(str(path), {"other": 1}), async_stager=None
    )
    return failures_of(future.result), type(future.exception()).__name__


def test_background_save_that_fails(tmp_path):
    for failed, kind in run(2, save_in_background, tmp_path / "c"):
        assert failed.keys() == {0} and 'tensor "w"' in failed[0][1] and kind == "CheckpointException"
    assert os.listdir(tmp_path) == []


# Reading


def corrupt_header(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[8:12] = b"]]]]"
    file.write_bytes(data)


def flip_a_bit(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def cut_short(file: pathlib.Path) -> None:
    os.truncate(file, file.stat().st_size - 3)


def delete(file: pathlib.Path) -> None:
    file.unlink()


def load_failing(path, full: State) -> dict:
    state = {name: torch.zeros_like(tensor) for name, tensor in full.items()}
    return failures_of(dcp.load, state, storage_reader=SAFERING.reader(str(path)))


@pytest.mark.parametrize("harm", [corrupt_header, flip_a_bit, cut_short, delete])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_file(tmp_path, layout, harm):
    path = tmp_path / "c"
    run(2, save_placed, path, WHOLE, LAYOUTS[layout])
    file = sorted(path.glob("*.safetensors"))[-1]
    harm(file)
    failed = agreed(run(2, load_failing, path, WHOLE))
    assert failed
    for kind, message in failed.values():
        assert file.name in message, message
        assert harm is not flip_a_bit or "tensor" in message, message


def test_damaged_manifest(tmp_path):
    save(tmp_path, WHOLE)
    (tmp_path / "safering.manifest.json").write_text("{")
    with pytest.raises(CheckpointException, match="safering.manifest.json"):
        load(tmp_path, WHOLE)


def test_damaged_index(tmp_path):
    save(tmp_path, WHOLE)
    (tmp_path / "safering.manifest.json").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(CheckpointException, match=r"index.json"):
        load(tmp_path, WHOLE)


@pytest.mark.parametrize("shape", [(8, 5), (9, 4), (8,), (8, 4, 1)], ids=str)
def test_wrong_shape(tmp_path, shape):
    save(tmp_path, WHOLE)
    with pytest.raises(CheckpointException, match="a"):
        load(tmp_path, {"a": torch.zeros(shape)})


def test_tensor_that_the_checkpoint_lacks(tmp_path):
    save(tmp_path, WHOLE)
    with pytest.raises(CheckpointException, match="missing"):
        load(tmp_path, {"missing": torch.zeros(3)})


def test_directory_that_is_none(tmp_path):
    with pytest.raises(CheckpointException, match="nowhere.*no checkpoint here"):
        load(tmp_path / "nowhere", WHOLE)


class WrongTargetPlanner(dcp.DefaultLoadPlanner):
    def resolve_tensor(self, read_item):
        return super().resolve_tensor(read_item)[:1]


def test_target_that_is_not_as_planned(tmp_path):
    save(tmp_path, WHOLE)
    with pytest.raises(CheckpointException, match=r"'a'.*\(8, 4\).*\(1, 4\)"):
        dcp.load(
            {"a": torch.zeros(8, 4)}, storage_reader=SAFERING.reader(str(tmp_path)), planner=WrongTargetPlanner()
        )


# Calls out of order


def test_finish_without_a_plan(tmp_path):
    with pytest.raises(RuntimeError, match="no save .* is under way"):
        SAFERING.writer(str(tmp_path / "c")).finish(None, [])


def test_reset_removes_what_was_begun(tmp_path):
    writer = SAFERING.writer(str(tmp_path / "c"))
    planner = dcp.DefaultSavePlanner()
    planner.set_up_planner(dict(WHOLE), is_coordinator=True)
    plans, _ = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    writer.prepare_global_plan(plans)
    assert len(attempts_beside(tmp_path / "c")) == 1
    writer.reset()
    assert os.listdir(tmp_path) == []


# Processes and threads


def save_in_fork(path, busy: bool) -> None:
    """Forks after use, and while a save is under way; parent and child save on."""
    save(path / "before", WHOLE)
    saving = threading.Thread(target=save, args=(path / "busy", {"w": torch.ones(1 << 24)}))
    if busy:
        saving.start()
        time.sleep(0.02)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert_same(load(path / "before", WHOLE), WHOLE)
            save(path / "child", OTHER)
            code = 0
        finally:
            os._exit(code)
    save(path / "parent", WHOLE)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    if busy:
        saving.join()


@pytest.mark.parametrize("busy", [False, True], ids=["after", "while"])
def test_forked_child_saves(tmp_path, busy):
    run(1, save_in_fork, tmp_path, busy)
    assert sorted(os.listdir(tmp_path)) == sorted(["before", "child", "parent"] + ["busy"] * busy)
    assert_same(load(tmp_path / "child", OTHER), OTHER)
    assert_same(load(tmp_path / "parent", WHOLE), WHOLE)
    if busy:
        assert_same(load(tmp_path / "busy", {"w": torch.ones(1 << 24)}), {"w": torch.ones(1 << 24)})


def save_by(writer) -> None:
    dcp.save(OTHER, storage_writer=writer)


def test_spawned_child_saves(tmp_path):
    writer = SAFERING.writer(str(tmp_path / "c"))
    dcp.save(WHOLE, storage_writer=writer)
    child = multiprocessing.get_context("spawn").Process(target=save_by, args=(writer,))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0
    assert_same(load(tmp_path / "c", OTHER), OTHER)


def ticks_while_saving(path) -> tuple[int, float]:
    """How often another thread got its turn, and in how many seconds."""
    state = {"w": torch.ones(1 << 26)}
    ticks, ended = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not ended.wait(0.001):
            ticks += 1

    ticking = threading.Thread(target=tick)
    begin = time.monotonic()
    ticking.start()
    save(path, state)
    seconds = time.monotonic() - begin
    ended.set()
    ticking.join()
    return ticks, seconds


def test_other_threads_run_while_saving(tmp_path):
    ticks, seconds = run(1, ticks_while_saving, tmp_path / "c")[0]
    # Were the GIL held, there would be none for nearly all of the time.
    assert ticks > 0.2 * seconds / 0.001


def save_in_threads(path) -> None:
    errors = []

    def go(number: int) -> None:
        try:
            for step in range(3):
                save(path / f"{number}", {"w": numbers(100, 7, start=step + number)})
                expected = {"w": numbers(100, 7, start=step + number)}
                assert_same(load(path / f"{number}", expected), expected)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def test_threads_save_at_a_time(tmp_path):
    run(1, save_in_threads, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3"]
