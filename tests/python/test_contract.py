"""What DCP and its clients rely on, beyond loading what was saved."""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import pickle
import stat

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch.distributed.checkpoint._hf_utils import _HFStorageInfo
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse
from torch.distributed.tensor import Shard, init_device_mesh

import safering.torch
from ranks import run
from states import (
    LAYOUTS,
    SAFERING,
    TORCH,
    State,
    assert_same,
    files_in,
    load,
    load_full,
    load_keys,
    numbers,
    place,
    save,
)

INDEX = "model.safetensors.index.json"
MANIFEST = "safering.manifest.json"


def small_state(start: float = 0.0) -> State:
    return {"a.weight": numbers(6, 4, start=start), "b": torch.arange(5) + int(start), "s": torch.tensor(start + 0.5)}


def index_of(path: pathlib.Path) -> dict:
    return json.loads((path / INDEX).read_text())


def save_placed(path, full: State, options: dict, **arguments) -> None:
    """On every rank; sharded by rows where there are any."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {name: place(tensor, mesh, [Shard(0)]) if tensor.dim() else tensor for name, tensor in full.items()}
    dcp.save(state, storage_writer=SAFERING.writer(str(path), **options), **arguments)


# Classes


@pytest.mark.parametrize("kind", ["writer", "reader"])
def test_constructor_takes_what_torch_takes(kind):
    def positional(cls) -> list[tuple]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [(one.name, one.default) for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]

    ours, torchs = getattr(SAFERING, kind), getattr(TORCH, kind)
    assert positional(ours) == positional(torchs)
    parameters = inspect.signature(ours.__init__).parameters
    more = set(parameters) - set(inspect.signature(torchs.__init__).parameters)
    assert more and all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in more)


@pytest.mark.parametrize("kind", ["writer", "reader"])
def test_methods_take_what_torchs_take(kind):
    ours, torchs = getattr(SAFERING, kind), getattr(TORCH, kind)
    names = [name for name, _ in inspect.getmembers(torchs, inspect.isfunction) if name != "__init__"]
    assert "reset" in names
    for name in names:
        assert list(inspect.signature(getattr(ours, name)).parameters) == list(
            inspect.signature(getattr(torchs, name)).parameters
        ), name


def test_classes_are_torchs(tmp_path):
    assert isinstance(SAFERING.writer(str(tmp_path)), TORCH.writer)
    assert isinstance(SAFERING.reader(str(tmp_path)), TORCH.reader)
    assert isinstance(SAFERING.writer(str(tmp_path)), dcp.StorageWriter)
    assert isinstance(SAFERING.reader(str(tmp_path)), dcp.StorageReader)


@pytest.mark.parametrize(
    "arguments",
    [(), ({"a": 1}, 3), (None, 2, True), ({"a": 2}, 1, True, True, 4)],
    ids=["plain", "mapping", "sharded", "consolidated"],
)
def test_attributes_are_torchs(tmp_path, arguments):
    ours, torchs = SAFERING.writer(str(tmp_path), *arguments), TORCH.writer(str(tmp_path), *arguments)
    for name, value in vars(torchs).items():
        if name in ("fs", "save_id", "transforms"):
            assert type(getattr(ours, name)) is type(value), name
        else:
            assert getattr(ours, name) == value, name
    assert ours.metadata_path == torchs.metadata_path == INDEX
    assert ours.checkpoint_id == torchs.checkpoint_id


def test_pickled_writer_and_reader_work(tmp_path):
    writer = pickle.loads(pickle.dumps(SAFERING.writer(str(tmp_path / "c"), save_distributed=True)))
    dcp.save(small_state(), storage_writer=writer)
    again = pickle.loads(pickle.dumps(writer))
    dcp.save(small_state(3), storage_writer=again)
    reader = pickle.loads(pickle.dumps(SAFERING.reader(str(tmp_path / "c"))))
    for one in (reader, None):
        state = {name: torch.zeros_like(tensor) for name, tensor in small_state().items()}
        dcp.load(state, storage_reader=one or pickle.loads(pickle.dumps(reader)))
        assert_same(state, small_state(3))


def test_validate_checkpoint_id_is_torchs(tmp_path):
    ids = (tmp_path, str(tmp_path), tmp_path / "new", "relative", "s3://bucket/key", tmp_path / "a" / "b")
    for cls in ("writer", "reader"):
        for checkpoint_id in ids:
            ours, torchs = (getattr(one, cls).validate_checkpoint_id(checkpoint_id) for one in (SAFERING, TORCH))
            assert ours == torchs, (cls, checkpoint_id)


def test_fs_is_usable(tmp_path):
    writer = SAFERING.writer(str(tmp_path / "c"))
    assert isinstance(writer.fs, FileSystem) and isinstance(SAFERING.reader(str(tmp_path)).fs, FileSystem)
    dcp.save(small_state(), storage_writer=writer)
    assert writer.fs.exists(writer.fs.concat_path(writer.path, writer.metadata_path))


def test_split_by_storage_plan_is_torchs(tmp_path):
    items = dcp.DefaultSavePlanner()
    items.set_up_planner(small_state(), is_coordinator=True)
    items = items.create_local_plan().items
    for mapping in (None, {"a.weight": 2, "b": 1, "s": 2}):
        ours, torchs = (
            one.writer(str(tmp_path))._split_by_storage_plan(mapping, items) for one in (SAFERING, TORCH)
        )
        assert ours == torchs and len(ours) == len(set(mapping.values()) if mapping else [1])


# Files


def test_one_file_without_a_mapping(tmp_path):
    save(tmp_path / "c", small_state())
    assert files_in(tmp_path / "c") == ["model-00001-of-00001.safetensors"]
    assert index_of(tmp_path / "c") == {
        "metadata": {"total_size": 6 * 4 * 4 + 5 * 8 + 4},
        "weight_map": {name: "model-00001-of-00001.safetensors" for name in small_state()},
    }


@pytest.mark.parametrize("layout", ["full", "consolidated"])
def test_mapping_names_the_files(tmp_path, layout):
    mapping = {"a.weight": 1, "b": 3, "s": 3, "tied": 2}
    save(tmp_path / "c", small_state(), fqn_to_index_mapping=mapping, **LAYOUTS[layout])
    first, third = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
    assert files_in(tmp_path / "c") == [first, third]
    assert index_of(tmp_path / "c") == {
        "metadata": {"total_size": 6 * 4 * 4 + 5 * 8 + 4},
        "weight_map": {"a.weight": first, "b": third, "s": third},
    }
    assert_same(load_full(tmp_path / "c"), small_state())


def test_shards_of_two_ranks(tmp_path):
    mapping = {"a.weight": 1, "b": 2, "s": 2}
    run(2, save_placed, tmp_path / "c", small_state(), {"fqn_to_index_mapping": mapping, "save_distributed": True})
    names = [f"shard-{rank:05d}-model-{index:05d}-of-00002.safetensors" for rank in (1, 2) for index in (1, 2)]
    assert files_in(tmp_path / "c") == names
    assert not (tmp_path / "c" / INDEX).exists()
    with safe_open(tmp_path / "c" / names[2], "pt") as file:
        metadata = file.metadata()
        assert json.loads(metadata["DCP_SHARDING_INFO"]) == {"a.weight": {"saved_offsets": [3, 0]}}
        assert (metadata["DCP_VERSION"], metadata["format"]) == ("1.0", "pt")
        assert file.get_slice("a.weight").get_shape() == [3, 4]
    scalars = []
    for name in names:
        with safe_open(tmp_path / "c" / name, "pt") as file:
            info = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            assert sorted(info) == sorted(file.keys())
            scalars += [info[key]["saved_offsets"] for key in info if key == "s"]
    assert scalars == [[]]


def test_consolidation_leaves_no_sharded_directory(tmp_path):
    writer = SAFERING.writer(str(tmp_path / "c"), save_distributed=True, enable_consolidation=True)
    for checkpoint_id, target in ((None, tmp_path / "c"), (tmp_path / "d", tmp_path / "d")):
        dcp.save(small_state(), storage_writer=writer, checkpoint_id=checkpoint_id)
        assert str(writer.path) == str(target / "sharded")
        assert str(writer.consolidated_output_path) == str(target)
        assert sorted(os.listdir(target)) == ["model-00001-of-00001.safetensors", INDEX, MANIFEST]
        assert_same(load_full(target), small_state())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_writer_saves_step_after_step(tmp_path, layout):
    writer = SAFERING.writer(str(tmp_path / "unused"), **LAYOUTS[layout])
    for step in range(3):
        dcp.save(small_state(step), storage_writer=writer, checkpoint_id=str(tmp_path / f"step_{step}"))
    assert sorted(os.listdir(tmp_path)) == ["step_0", "step_1", "step_2"]
    for step in range(3):
        assert_same(load(tmp_path / f"step_{step}", small_state()), small_state(step))


def test_one_reader_loads_step_after_step(tmp_path):
    for step in range(2):
        save(tmp_path / f"{step}", small_state(step))
    reader = SAFERING.reader(str(tmp_path / "unused"))
    for step in (0, 1, 0):
        state = {name: torch.zeros_like(tensor) for name, tensor in small_state().items()}
        dcp.load(state, storage_reader=reader, checkpoint_id=str(tmp_path / f"{step}"))
        assert_same(state, small_state(step))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_permissions_are_the_umasks(tmp_path, umask, layout):
    before = os.umask(umask)
    try:
        save(tmp_path / "new" / "c", small_state(), **LAYOUTS[layout])
        save(tmp_path / "new" / "c", small_state(), **LAYOUTS[layout])
    finally:
        os.umask(before)
    for directory in (tmp_path / "new", tmp_path / "new" / "c"):
        assert oct(stat.S_IMODE(directory.stat().st_mode)) == oct(0o777 & ~umask)
    for file in (tmp_path / "new" / "c").iterdir():
        assert oct(stat.S_IMODE(file.stat().st_mode)) == oct(0o666 & ~umask), file.name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_others_stay(tmp_path, layout):
    foreign = {
        "config.json": b"{}",
        ".metadata": b"not a pickle",
        "tokenizer/vocab.txt": b"a b c",
        "sharded/shard-00001-model-00001-of-00001.safetensors": b"not safetensors either",
    }
    for name, data in foreign.items():
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_bytes(data)
    for step in range(2):
        save(tmp_path / "c", small_state(step), **LAYOUTS[layout])
        assert_same(load(tmp_path / "c", small_state()), small_state(step))
        assert {name: (tmp_path / "c" / name).read_bytes() for name in foreign} == foreign
    assert os.listdir(tmp_path) == ["c"]


def test_other_layout_leaves_nothing_stale(tmp_path):
    mapping = {"a.weight": 1, "b": 2, "s": 2}
    save(tmp_path, small_state(), fqn_to_index_mapping=mapping)
    save(tmp_path, small_state(1), save_distributed=True)
    assert sorted(os.listdir(tmp_path)) == [MANIFEST, "shard-00001-model-00001-of-00001.safetensors"]
    save(tmp_path, small_state(2))
    assert sorted(os.listdir(tmp_path)) == ["model-00001-of-00001.safetensors", INDEX, MANIFEST]
    assert_same(load(tmp_path, small_state()), small_state(2))


# What planners and callers are given


class KeepingResults:
    """Keeps what `finish` gets."""

    def finish(self, metadata, results):
        self.results = results
        super().finish(metadata, results)


class OurKeepingWriter(KeepingResults, SAFERING.writer):
    pass


class TorchsKeepingWriter(KeepingResults, TORCH.writer):
    pass


@pytest.mark.parametrize("mapping", [None, {"a.weight": 2, "b": 1, "s": 1}], ids=["one", "two"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_write_results_are_torchs(tmp_path, layout, mapping):
    if layout == "consolidated":
        state = {"a.weight": numbers(6, 4), "b": numbers(5), "s": numbers(2)}  # what torch can consolidate
    else:
        state = small_state()
    found = []
    for cls in (OurKeepingWriter, TorchsKeepingWriter):
        writer = cls(str(tmp_path / cls.__name__), mapping, **LAYOUTS[layout])
        metadata = dcp.save(state, storage_writer=writer)
        fields = {}
        for result in writer.results[0]:
            data = result.storage_data
            # torch's class writes shards first, ours the final files.
            name = data.relative_path.removeprefix("shard-00001-") if layout == "consolidated" else data.relative_path
            fields[result.index] = (result.size_in_bytes, name, data.offset, data.length)
        found.append((fields, metadata.state_dict_metadata))
    assert found[0] == found[1]


@pytest.mark.parametrize("layout", ["full", "sharded"])
def test_metadata_is_torchs(tmp_path, layout):
    mapping = {"a.weight": 1, "b": 2, "s": 2}
    run(2, save_placed, tmp_path / "c", small_state(), LAYOUTS[layout] | {"fqn_to_index_mapping": mapping})
    ours, torchs = (one.reader(str(tmp_path / "c")).read_metadata() for one in (SAFERING, TORCH))

    def chunks(metadata) -> dict:
        return {
            name: (one.size, one.properties.dtype, sorted((tuple(c.offsets), tuple(c.sizes)) for c in one.chunks))
            for name, one in metadata.state_dict_metadata.items()
        }

    assert chunks(ours) == chunks(torchs)

    def storage(metadata) -> dict:
        return {
            (index.fqn, tuple(index.offset)): (info.relative_path, info.shape, info.dtype)
            for index, info in metadata.storage_data.items()
        }

    assert storage(ours) == storage(torchs)
    assert all(type(info) is _HFStorageInfo for info in ours.storage_data.values())
    assert MetadataIndex("a.weight", torch.Size([0, 0])) in ours.storage_data


def test_load_from_keys(tmp_path):
    save(tmp_path, small_state())
    assert_same(load_keys(tmp_path, {"a.weight", "s"}), {k: v for k, v in small_state().items() if k != "b"})


@pytest.mark.parametrize(
    "keys, names",
    [
        ({"model"}, ["model.layers.0.w", "model.layers.10.w", "model.norm"]),
        ({"model.layers.1"}, []),  # whole parts of a name only
        ({"model.layers.10", "top"}, ["model.layers.10.w", "top"]),
        (None, ["model.layers.0.w", "model.layers.10.w", "model.norm", "top"]),
    ],
)
def test_load_from_prefixes(tmp_path, keys, names):
    """torch's reader ends in an AttributeError for a key that is no whole name."""
    state = {"model.layers.0.w": numbers(3), "model.layers.10.w": numbers(2), "model.norm": numbers(1), "top": numbers(4)}
    save(tmp_path, state)
    assert_same(load_keys(tmp_path, keys), {name: state[name] for name in names})


def test_paths_that_are_not_utf8(tmp_path):
    state = small_state()
    base = tmp_path / os.fsdecode(b"r\xffun")
    for layout, options in LAYOUTS.items():
        save(base / layout, state, **options)
        assert_same(load(base / layout, state), state)
    writer = SAFERING.writer(base / "asked")
    safering.torch.save(state, storage_writer=writer, no_dist=True)
    assert writer.report["path"] == str(base / "asked")
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    safering.torch.load(loaded, storage_reader=SAFERING.reader(base / "asked"), no_dist=True)
    assert_same(loaded, state)
    with safering.torch.AsyncSaver() as saver:
        assert saver.save(state, base / "async").result(60)["path"] == str(base / "async")
        saver.save(state, base / "flushed")
        flushed = saver.emergency_flush(60)
    assert flushed.saved in ([], [str(base / "flushed")]) and flushed.abandoned == []
    assert_same(load(base / "flushed", state), state)
    safering.torch.consolidate_safetensors_files(str(base / "sharded"), str(base / "whole"))
    assert_same(load(base / "whole", state), state)
    with pytest.raises(CheckpointException, match="absent"):
        load(base / "absent", state)


def test_nested_state(tmp_path):
    state = {"model": {"layers": [{"w": numbers(3, 2)}, {"w": numbers(2, 2)}]}, "top": numbers(4)}
    save(tmp_path, state)
    assert sorted(index_of(tmp_path)["weight_map"]) == ["model.layers.0.w", "model.layers.1.w", "top"]
    loaded = {
        "model": {"layers": [{"w": torch.zeros(3, 2)}, {"w": torch.zeros(2, 2)}]},
        "top": torch.zeros(4),
    }
    dcp.load(loaded, storage_reader=SAFERING.reader(str(tmp_path)))
    assert torch.equal(loaded["model"]["layers"][1]["w"], state["model"]["layers"][1]["w"])


@pytest.mark.parametrize("threads", [1, 4])
def test_thread_count_is_accepted(tmp_path, threads):
    mapping = {"a.weight": 1, "b": 2, "s": 3}
    writer = SAFERING.writer(str(tmp_path), mapping, threads)
    dcp.save(small_state(), storage_writer=writer)
    state = {name: torch.zeros_like(tensor) for name, tensor in small_state().items()}
    reader = SAFERING.reader(str(tmp_path), threads)
    dcp.load(state, storage_reader=reader)
    assert_same(state, small_state())
    assert (writer.thread_count, reader.thread_count) == (threads, threads)


@pytest.mark.parametrize("backend", ["automatic", "threads"])
def test_backend_is_reported(tmp_path, backend):
    told = []
    writer = SAFERING.writer(str(tmp_path), backend=backend, progress=lambda done, total: told.append((done, total)))
    dcp.save(small_state(), storage_writer=writer)
    assert writer.report["backend"] in (["threads"] if backend == "threads" else ["io_uring", "threads"])
    assert writer.report["tensor_bytes"] == 140 and told[-1] == (140, 140)
    reader = SAFERING.reader(str(tmp_path), backend=backend, verification="all")
    dcp.load(small_state(), storage_reader=reader)
    assert reader.report["tensor_bytes"] == 140 and reader.report["verified_bytes"] >= 140


def test_saving_without_digests(tmp_path):
    save(tmp_path, small_state(), digests=False)
    assert_same(load(tmp_path, small_state()), small_state())


# Ways to call dcp.save


def save_alone(path, layout: str, arguments: dict) -> None:
    """What is sharded, and something of each rank's own."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rank = dist.get_rank()
    state = {"w": place(numbers(7, 3), mesh, [Shard(0)]), f"own.{rank}": numbers(4, start=rank)}
    dcp.save(state, storage_writer=SAFERING.writer(str(path), **LAYOUTS[layout]), **arguments)


# What no rank sees the whole of cannot be laid out as final files.
final = pytest.mark.xfail(strict=False, reason="ranks that plan alone, with final files")


@pytest.mark.parametrize(
    "arguments", [{"use_collectives": False}, {"no_dist": True}], ids=["no_collectives", "no_dist"]
)
@pytest.mark.parametrize(
    "layout", ["sharded", pytest.param("full", marks=final), pytest.param("consolidated", marks=final)]
)
def test_ranks_that_plan_alone(tmp_path, layout, arguments):
    for _ in range(2):
        run(2, save_alone, tmp_path / "c", layout, arguments)
        state = {"w": numbers(7, 3), "own.0": numbers(4), "own.1": numbers(4, start=1)}
        assert_same(load(tmp_path / "c", state), state)
        assert os.listdir(tmp_path) == ["c"]


def save_own_path(path, arguments: dict) -> None:
    rank = dist.get_rank()
    dcp.save(small_state(rank), storage_writer=SAFERING.writer(str(path / f"{rank}")), **arguments)


def test_ranks_with_a_path_each(tmp_path):
    run(2, save_own_path, tmp_path, {"no_dist": True})
    for rank in range(2):
        assert_same(load(tmp_path / f"{rank}", small_state()), small_state(rank))


def save_in_background(path, kind: str, layout: str) -> None:
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    writer = SAFERING.writer(str(path), **LAYOUTS[layout])
    arguments = {}
    if kind == "process":
        arguments["async_checkpointer_type"] = AsyncCheckpointerType.PROCESS
    if kind == "stager":
        arguments["async_stager"] = DefaultStager(StagingOptions(False, False, False, False))
    if kind == "async_stager":
        arguments["async_stager"] = DefaultStager(StagingOptions(False, False, True, False))
    for step in range(2):
        full = small_state(step)
        state = {name: place(tensor, mesh, [Shard(0)]) if tensor.dim() else tensor for name, tensor in full.items()}
        answer = dcp.async_save(state, storage_writer=writer, checkpoint_id=str(path / f"{step}"), **arguments)
        if isinstance(answer, AsyncSaveResponse):
            answer.staging_completion.result()
            answer = answer.upload_completion
        # What is trained on is no longer what is saved.
        for tensor in state.values():
            tensor.fill_(-1)
        answer.result(timeout=60)
    if "async_stager" in arguments:
        arguments["async_stager"].close()


@pytest.mark.parametrize("layout", ["sharded", "consolidated"])
@pytest.mark.parametrize("kind", ["thread", "stager", "async_stager", "process"])
def test_async_save(tmp_path, kind, layout):
    run(2, save_in_background, tmp_path / "c", kind, layout, timeout=120)
    for step in range(2):
        assert_same(load(tmp_path / "c" / f"{step}", small_state()), small_state(step))
    assert sorted(os.listdir(tmp_path / "c")) == ["0", "1"]


def save_steps(path, states: list[State], options: dict, same_path: bool) -> None:
    """Of every step a new writer and planner."""
    for step, full in enumerate(states):
        target = path / ("c" if same_path else f"{step}")
        save_placed(target, full, options, planner=dcp.DefaultSavePlanner(enable_plan_caching=True))
        dist.barrier()
        if dist.get_rank() == 0:
            assert_same(load(target, full), full)
        dist.barrier()


@pytest.mark.parametrize("same_path", [True, False], ids=["same_path", "new_path"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cached_plans(tmp_path, layout, same_path):
    run(2, save_steps, tmp_path, [small_state(step) for step in range(4)], LAYOUTS[layout], same_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plans_that_change_while_cached(tmp_path, layout):
    small, large = small_state(), small_state(1) | {"new": numbers(9, 2), "b": torch.arange(11)}
    # The last rank's part of `c` changes, the first one's does not.
    other = [small | {"c": numbers(4, 2)}, small | {"c": numbers(3, 2)}]
    states = [small, small_state(2), large, large, small, *other]
    run(2, save_steps, tmp_path, states, LAYOUTS[layout], True)
