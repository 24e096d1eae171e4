"""Classes that users derive from ours, as they do from torch's: what they override is asked, and what they rely on is there.

`import safering.torch as dcp` and install() put our classes under torch's names, so code that was written for torch's
derives from ours.
"""

import dataclasses
import os
import weakref

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import run
from safetensors.torch import load_file, save_file
from states import SAFERING, TORCH, assert_same, load, load_full, numbers, place, save
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.futures import Future

import safering.torch
from safering.torch import HuggingFaceStorageReader, HuggingFaceStorageWriter, QuantizedHuggingFaceStorageReader
from safering.torch import _tensors

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")
BOTH = pytest.mark.parametrize("classes", [TORCH, SAFERING], ids=["torch", "safering"])


def small() -> dict[str, torch.Tensor]:
    return {"a": numbers(8, 6), "b": numbers(4, start=100)}


def sharded(full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {name: place(tensor, mesh, [Shard(0)]) for name, tensor in full.items()}


def negating(base: type) -> type:
    class Negating(base):
        def _process_read_request(self, f, req, planner):
            part = f.get_tensor(req.storage_index.fqn)
            part = part[tuple(slice(o, o + n) for o, n in zip(req.storage_offsets, req.lengths))]
            target = planner.resolve_tensor(req).detach()
            target.copy_(-part)
            planner.commit_tensor(req, target)

    return Negating


def load_negated(path, base: type) -> None:
    state = sharded({name: torch.zeros_like(tensor) for name, tensor in small().items()})
    dcp.load(state, storage_reader=negating(base)(str(path)))
    for name, tensor in sharded(small()).items():
        assert torch.equal(state[name].to_local(), -tensor.to_local())


@BOTH
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_reader_that_transforms_what_it_reads(tmp_path, classes, ranks):
    save(tmp_path / "c", small())
    run(ranks, load_negated, tmp_path / "c", classes.reader)


def test_a_reader_that_transforms_is_not_passed_over_by_the_short_way(tmp_path):
    save(tmp_path / "c", small())
    for change in ("class", "object"):
        state = {name: torch.zeros_like(tensor) for name, tensor in small().items()}
        reader = HuggingFaceStorageReader(str(tmp_path / "c"))
        if change == "class":
            reader = negating(HuggingFaceStorageReader)(str(tmp_path / "c"))
        else:
            reader._process_read_request = negating(object)._process_read_request.__get__(reader)
        safering.torch.load(state, storage_reader=reader)
        assert_same(state, {name: -tensor for name, tensor in small().items()})


def test_a_quantized_reader_that_dequantizes_by_itself(tmp_path):
    os.mkdir(tmp_path / "c")
    name = "model-00001-of-00001.safetensors"
    weight = torch.ones(4, 4).to(torch.float8_e4m3fn)
    save_file({"w.weight": weight, "w.weight_scale_inv": torch.full((2, 2), 2.0)}, tmp_path / "c" / name)
    weights = '{"w.weight": "%s", "w.weight_scale_inv": "%s"}' % (name, name)
    (tmp_path / "c" / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": %s}' % weights)

    class Adding(QuantizedHuggingFaceStorageReader):
        def _dequantize_tensor(self, *args, **kwargs):
            return super()._dequantize_tensor(*args, **kwargs) + 1

    for reader, expected in ((QuantizedHuggingFaceStorageReader, 2.0), (Adding, 3.0)):
        state = {"w.weight": torch.zeros(4, 4)}
        dcp.load(state, storage_reader=reader(str(tmp_path / "c"), block_size=2))
        assert torch.equal(state["w.weight"], torch.full((4, 4), expected))


class Renamed(HuggingFaceStorageReader):
    """Shows tensors under names of its own, and reads them itself."""

    def read_metadata(self) -> Metadata:
        metadata = super().read_metadata()
        return Metadata(
            {f"my.{name}": tensor for name, tensor in metadata.state_dict_metadata.items()},
            storage_data={MetadataIndex(f"my.{i.fqn}", i.offset): i.fqn for i in metadata.storage_data},
        )

    def read_data(self, plan, planner) -> Future[None]:
        stored = load_file(os.path.join(self.path, "model-00001-of-00001.safetensors"))
        for item in plan.items:
            box = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths))
            target = planner.resolve_tensor(item).detach()
            target.copy_(stored[self.storage_data[item.storage_index]][box])
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future


def load_renamed(path) -> None:
    state = sharded({f"my.{name}": torch.zeros_like(tensor) for name, tensor in small().items()})
    dcp.load(state, storage_reader=Renamed(str(path)))
    for name, tensor in sharded(small()).items():
        assert torch.equal(state[f"my.{name}"].to_local(), tensor.to_local())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_reader_that_reads_by_itself(tmp_path, ranks):
    save(tmp_path / "c", small())
    run(ranks, load_renamed, tmp_path / "c")


def writing(base: type) -> type:
    class Writing(base):
        """Writes its files itself."""

        def write_data(self, plan, planner):
            index = plan.storage_data.get("shard_index")
            name = f"shard-{index:05d}-model-00001-of-00001.safetensors"
            results = []
            tensors = {}
            for item in plan.items:
                tensors[item.index.fqn] = planner.resolve_data(item).detach().contiguous()
                results.append(WriteResult(item.index, tensors[item.index.fqn].nbytes, None))
            save_file(tensors, os.path.join(self.path, name))
            future = Future()
            future.set_result(results)
            return future

        def finish(self, metadata, results):
            assert sum(map(len, results)) == 2 * dist.get_world_size()
            return super().finish(metadata, results)

    return Writing


def save_by_itself(path, base: type) -> None:
    dcp.save(sharded(small()), storage_writer=writing(base)(str(path), save_distributed=True))


@BOTH
def test_a_writer_that_writes_by_itself(tmp_path, classes):
    run(2, save_by_itself, tmp_path / "c", classes.writer)
    assert sorted(os.listdir(tmp_path)) == ["c"]
    assert sorted(os.listdir(tmp_path / "c")) == [f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)]
    parts = [load_file(tmp_path / "c" / name) for name in sorted(os.listdir(tmp_path / "c"))]
    assert_same({name: torch.cat([part[name] for part in parts]) for name in small()}, small())


class Counting(HuggingFaceStorageWriter):
    written = 0

    def write_data(self, plan, planner):
        self.written += len(plan.items)
        return super().write_data(plan, planner)


def test_a_writer_that_only_looks_on(tmp_path):
    writer = Counting(str(tmp_path / "c"))
    dcp.save(small(), storage_writer=writer, no_dist=True)
    assert writer.written == 2 and writer.report.tensor_bytes == 8 * 6 * 4 + 16
    assert_same(load(tmp_path / "c", small()), small())


class Splitting(HuggingFaceStorageWriter):
    """A file for each tensor."""

    def _split_by_storage_plan(self, storage_plan, items):
        return {i + 1: [item] for i, item in enumerate(items)}


def test_a_writer_that_splits_as_it_likes(tmp_path, caplog):
    for kind in ("class", "object"):
        writer = Splitting(str(tmp_path / kind))
        if kind == "object":
            writer = HuggingFaceStorageWriter(str(tmp_path / kind))
            writer._split_by_storage_plan = Splitting._split_by_storage_plan.__get__(writer)
        safering.torch.save(small(), storage_writer=writer, no_dist=True)
        files = [name for name in os.listdir(tmp_path / kind) if name.endswith(".safetensors")]
        assert len(files) == 2
        assert_same(load_full(tmp_path / kind), small())
    assert "_split_by_storage_plan" in caplog.text


class Scratch(dcp.DefaultLoadPlanner):
    """One piece of memory for all tensors, one after the other."""

    def set_up_planner(self, *args, **kwargs):
        super().set_up_planner(*args, **kwargs)
        self.memory = torch.empty(48)

    def resolve_tensor(self, read_item):
        self.target = super().resolve_tensor(read_item)
        return self.memory[: self.target.numel()].view(self.target.shape)

    def commit_tensor(self, read_item, tensor):
        self.target.copy_(tensor)


def load_through_scratch(path, reader: type) -> None:
    for exchange in ("off", "shared_memory"):
        state = sharded({name: torch.zeros_like(tensor) for name, tensor in small().items()})
        options = {} if reader is TORCH.reader else {"exchange": exchange}
        dcp.load(state, storage_reader=reader(str(path), **options), planner=Scratch())
        for name, tensor in sharded(small()).items():
            assert torch.equal(state[name].to_local(), tensor.to_local())


@BOTH
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_planner_that_wants_one_tensor_at_a_time(tmp_path, classes, ranks):
    save(tmp_path / "c", small())
    run(ranks, load_through_scratch, tmp_path / "c", classes.reader)


def save_with_two_caches(path, keep: bool) -> None:
    class Other(dcp.DefaultSavePlanner):
        pass

    class Model(dcp.DefaultSavePlanner):
        pass

    writer = HuggingFaceStorageWriter(str(path / "m0"))
    for step in range(3):
        dcp.save({"step": 3, "m": numbers(3)}, checkpoint_id=path / f"o{step}", planner=Other(enable_plan_caching=True))
        if keep:
            writer.reset(path / f"m{step}")
        else:
            writer = HuggingFaceStorageWriter(str(path / f"m{step}"))
        state = {name: tensor + step for name, tensor in small().items()}
        dcp.save(state, storage_writer=writer, planner=Model(enable_plan_caching=True))
        assert_same(load(path / f"m{step}", small()), state)


@pytest.mark.parametrize("keep", [False, True])
def test_plans_of_another_planner_are_not_taken(tmp_path, keep):
    run(1, save_with_two_caches, tmp_path, keep)


def save_two_models_with_caches(path) -> None:
    class One(dcp.DefaultSavePlanner):
        pass

    class Two(dcp.DefaultSavePlanner):
        pass

    writers = {kind: HuggingFaceStorageWriter(str(path / "none")) for kind in (One, Two)}
    for step in range(3):
        for kind, writer in writers.items():
            writer.reset(path / f"{kind.__name__}{step}")
            state = {kind.__name__: numbers(4, start=step)}
            dcp.save(state, storage_writer=writer, planner=kind(enable_plan_caching=True))
            assert_same(load(path / f"{kind.__name__}{step}", state), state)
    new = HuggingFaceStorageWriter(str(path / "new"))
    with pytest.raises(BaseException, match="One.*Two"):  # CheckpointException is no Exception
        dcp.save({"One": numbers(4)}, storage_writer=new, planner=One(enable_plan_caching=True))
    assert not os.path.exists(path / "new")


def test_plans_of_two_planners_are_told_apart_or_refused(tmp_path):
    run(1, save_two_models_with_caches, tmp_path)


class Halving(safering.torch.DefaultSavePlanner):
    """As the documentation of torch's SavePlanner has it, for some."""

    def create_local_plan(self):
        plan = super().create_local_plan()
        for item in plan.items:
            if item.index.fqn != "b":
                item.tensor_data.properties.dtype = torch.float16
        return plan

    def resolve_data(self, write_item):
        tensor = super().resolve_data(write_item)
        return tensor if write_item.index.fqn == "b" else tensor.half()


def test_a_planner_that_changes_the_dtype_of_some(tmp_path):
    dcp.save(small(), storage_writer=HuggingFaceStorageWriter(str(tmp_path / "c")), planner=Halving(), no_dist=True)
    assert_same(load_full(tmp_path / "c"), {"a": small()["a"].half(), "b": small()["b"]})


class Counted(Halving):
    """Counts what it has made and nobody has given back so far."""

    alive = most = 0

    def resolve_data(self, write_item):
        tensor = super().resolve_data(write_item).clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tensor, self.gone)
        return tensor

    def gone(self):
        self.alive -= 1


def test_what_a_planner_makes_is_asked_for_in_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(_tensors, "WINDOW_BYTES", 4096)
    state = {f"t{i:02}": numbers(512, start=i) for i in range(40)}
    planner = Counted()
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(tmp_path / "c")), planner=planner, no_dist=True)
    assert_same(load_full(tmp_path / "c"), {name: tensor.half() for name, tensor in state.items()})
    assert planner.most <= 12  # of a window that is written, and one that is made


class InTurn(safering.torch.DefaultSavePlanner):
    def resolve_data(self, write_item):
        return super().resolve_data(write_item).clone()


def save_columns_in_turn(path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    full = {f"t{i}": numbers(64, 64, start=i) for i in range(6)} | {"b": numbers(8)}
    state = {name: place(tensor, mesh, [Shard(tensor.dim() - 1)]) for name, tensor in full.items()}
    _tensors.WINDOW_BYTES = 4096
    writer = HuggingFaceStorageWriter(str(path), exchange="shared_memory")
    dcp.save(state, storage_writer=writer, planner=InTurn())


def test_ranks_that_write_in_parts_exchange_what_they_can(tmp_path):
    run(2, save_columns_in_turn, tmp_path / "c")
    full = {f"t{i}": numbers(64, 64, start=i) for i in range(6)} | {"b": numbers(8)}
    assert_same(load_full(tmp_path / "c"), full)


class LastRank(safering.torch.DefaultSavePlanner):
    """Replicas are the last rank's."""

    def _dedup_save_plans(self, all_plans):
        return [dataclasses.replace(plan, items=[]) for plan in all_plans[:-1]] + all_plans[-1:]


def save_by_the_last(path) -> None:
    writer = HuggingFaceStorageWriter(str(path))
    dcp.save(small(), storage_writer=writer, planner=LastRank())
    assert (writer.work.direct_bytes + writer.work.cached_bytes > 0) == (dist.get_rank() == 1)


def test_a_planner_that_deduplicates_by_itself(tmp_path):
    run(2, save_by_the_last, tmp_path / "c")
    assert_same(load_full(tmp_path / "c"), small())


def test_a_tensor_of_a_shards_size_is_refused(tmp_path):
    save(tmp_path / "c", small())
    reader = HuggingFaceStorageReader(str(tmp_path / "c"))
    metadata = reader.read_metadata()
    metadata.state_dict_metadata["b"].size = torch.Size([8])  # as where its other shards are unknown
    planner = safering.torch.DefaultLoadPlanner()
    planner.set_up_planner({name: torch.zeros_like(tensor) for name, tensor in small().items()}, metadata)
    with pytest.raises(ValueError, match="ize"):
        planner.create_local_plan()
