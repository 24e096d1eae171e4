"""Consolidation, against torch's where that is right, else against what went in."""

import inspect
import json
import os
import shutil

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import _consolidate_hf_safetensors as upstream
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import safering
from safering.torch import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    consolidate_safetensors_files,
    consolidate_safetensors_files_on_every_rank,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
MODEL = "model-{:05d}-of-{:05d}.safetensors"


def floats(seed=0):
    torch.manual_seed(seed)
    return {
        "embed.weight": torch.randn(48, 64).to(torch.bfloat16),
        "layers.0.weight": torch.randn(17, 33),
        "layers.0.bias": torch.randn(33),
        "layers.1.weight": torch.randn(8, 5, 6, dtype=torch.float64),
    }


def others():
    torch.manual_seed(1)
    return {
        "scale": torch.tensor(2.5),
        "steps": torch.tensor(7),
        "ids": torch.arange(40).reshape(8, 5),
        "mask": torch.rand(16, 3) > 0.5,
        "wave": torch.randn(6, 2, dtype=torch.complex64),
        "quantised": torch.randn(16, 4).to(torch.float8_e4m3fn),
        "empty": torch.zeros(0, 4),
    }


def write_shards(path, tensors, ranks, dim=0):
    """What so many ranks of torch's writer leave: parts of each tensor along a dimension, whole ones on rank 0."""
    os.makedirs(path, exist_ok=True)
    for rank in range(ranks):
        shard, saved = {}, {}
        for name, tensor in tensors.items():
            if tensor.dim() <= dim or tensor.shape[dim] < ranks:
                if rank == 0:
                    shard[name], saved[name] = tensor, [0] * tensor.dim()
                continue
            parts = tensor.tensor_split(ranks, dim)
            shard[name] = parts[rank].contiguous()
            saved[name] = [0] * tensor.dim()
            saved[name][dim] = sum(part.shape[dim] for part in parts[:rank])
        info = {name: {"saved_offsets": offsets} for name, offsets in saved.items()}
        save_file(
            shard,
            os.path.join(path, f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"),
            metadata={"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0", "format": "pt"},
        )
    return path


def read(path):
    """{name: tensor} of all files that the index names, which must say where each is."""
    index = json.loads((path / "model.safetensors.index.json").read_text())
    tensors = {}
    for name in sorted(set(index["weight_map"].values())):
        tensors |= {fqn: (name, tensor) for fqn, tensor in load_file(path / name).items()}
    assert {fqn: name for fqn, (name, _) in tensors.items()} == index["weight_map"]
    return {fqn: tensor for fqn, (_, tensor) in tensors.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("name", ["consolidate_safetensors_files", "consolidate_safetensors_files_on_every_rank"])
def test_has_torchs_parameters(name):
    ours = inspect.signature(getattr(safering.torch, name)).parameters
    assert list(ours) == list(inspect.signature(getattr(upstream, name)).parameters)


@pytest.mark.parametrize("ranks, dim", [(1, 0), (3, 0), (4, 1)])
def test_equals_torchs(tmp_path, ranks, dim):
    tensors = floats()
    shards = write_shards(tmp_path / "sharded", tensors, ranks, dim)
    mapping = {name: 1 + number % 2 for number, name in enumerate(tensors)}
    (tmp_path / "theirs").mkdir()
    upstream.consolidate_safetensors_files(str(shards), str(tmp_path / "theirs"), mapping, num_threads=2)
    consolidate_safetensors_files(str(shards), str(tmp_path / "new" / "ours"), mapping, num_threads=2)
    theirs, ours = tmp_path / "theirs", tmp_path / "new" / "ours"
    assert_same(read(ours), tensors)
    assert_same(read(theirs), tensors)
    indexes = [json.loads((path / "model.safetensors.index.json").read_text()) for path in (ours, theirs)]
    assert indexes[0] == indexes[1]


def test_every_dtype_and_rank(tmp_path):
    tensors = floats() | others()
    shards = write_shards(tmp_path / "sharded", tensors, 3)
    consolidate_safetensors_files(shards, tmp_path / "ours", dict.fromkeys(tensors, 1))
    assert_same(read(tmp_path / "ours"), tensors)


@pytest.mark.xfail(TORCH < (2, 14), reason="0-d become zeros, integers crash, complex64 loses data", strict=True)
@pytest.mark.parametrize("name", ["scale", "ids", "mask", "wave"])
def test_torch_does_too(tmp_path, name):
    tensors = {name: others()[name]}
    shards = write_shards(tmp_path / "sharded", tensors, 2)
    (tmp_path / "theirs").mkdir()
    upstream.consolidate_safetensors_files(str(shards), str(tmp_path / "theirs"), {name: 1})
    assert_same(read(tmp_path / "theirs"), tensors)


def test_without_a_mapping_one_file(tmp_path):
    shards = write_shards(tmp_path / "sharded", floats(), 2)
    for mapping in ((), (None,), ({},)):
        consolidate_safetensors_files(str(shards), str(tmp_path / "ours"), *mapping)
        assert_same(load_file(tmp_path / "ours" / MODEL.format(1, 1)), floats())


def test_a_name_that_is_not_there_is_left_out(tmp_path):
    tensors = floats()
    shards = write_shards(tmp_path / "sharded", tensors, 2)
    mapping = dict.fromkeys(tensors, 2) | {"lm_head.weight": 3}
    consolidate_safetensors_files(shards, tmp_path / "ours", mapping)
    assert [path.name for path in (tmp_path / "ours").glob("*.safetensors")] == [MODEL.format(2, 3)]
    assert_same(read(tmp_path / "ours"), tensors)


def test_a_tensor_that_is_not_mapped(tmp_path):
    tensors = floats()
    shards = write_shards(tmp_path / "sharded", tensors, 2)
    mapping = dict.fromkeys(tensors, 1)
    del mapping["layers.0.bias"]
    with pytest.raises(safering.Error, match="layers.0.bias") as caught:
        consolidate_safetensors_files(shards, tmp_path / "ours", mapping)
    assert caught.value.tensor == "layers.0.bias"
    with pytest.raises(ValueError, match="'layers.0.bias' has file 0"):
        consolidate_safetensors_files(shards, tmp_path / "ours", mapping | {"layers.0.bias": 0})
    assert os.listdir(tmp_path) == ["sharded"]


def test_a_lost_shard_and_one_of_another_save(tmp_path):
    shards = write_shards(tmp_path / "sharded", floats(), 3)
    (shards / "shard-00002-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(safering.Error, match="layers.0.weight|embed.weight|layers.1.weight"):
        consolidate_safetensors_files(shards, tmp_path / "ours")
    write_shards(shards, floats(), 3)
    write_shards(shards, floats(), 2)  # the third stays
    with pytest.raises(safering.Error):
        consolidate_safetensors_files(shards, tmp_path / "ours")
    assert os.listdir(tmp_path) == ["sharded"]


def test_no_such_directory(tmp_path):
    with pytest.raises(safering.Error, match="none"):
        consolidate_safetensors_files(tmp_path / "none", tmp_path / "ours")


def test_a_changed_byte_is_not_consolidated(tmp_path):
    path = tmp_path / "saved"
    dcp.save(floats(), storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True))
    [file] = path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for target in (tmp_path / "ours", path):
        with pytest.raises(safering.Error, match=file.name):
            consolidate_safetensors_files(path, target)
    assert os.listdir(tmp_path) == ["saved"]


def test_an_older_checkpoint_is_replaced(tmp_path):
    old = write_shards(tmp_path / "1", floats(1), 2)
    consolidate_safetensors_files(old, tmp_path / "ours", dict.fromkeys(floats(), 2))
    (tmp_path / "ours" / "config.json").write_text("{}")
    consolidate_safetensors_files(write_shards(tmp_path / "2", floats(2), 3), tmp_path / "ours")
    assert_same(read(tmp_path / "ours"), floats(2))
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        MODEL.format(1, 1), "model.safetensors.index.json", "safering.manifest.json", "config.json"
    }


def test_in_place(tmp_path):
    path = write_shards(tmp_path / "step", floats() | others(), 3)
    (path / "config.json").write_text("{}")
    (path / ".metadata").write_bytes(b"not ours")
    consolidate_safetensors_files(path, path, dict.fromkeys(floats() | others(), 1))
    assert_same(read(path), floats() | others())
    assert {file.name for file in path.iterdir()} == {
        MODEL.format(1, 1), "model.safetensors.index.json", "safering.manifest.json", "config.json", ".metadata"
    }
    consolidate_safetensors_files(path, path)  # again, of what is whole
    assert_same(read(path), floats() | others())
    assert os.listdir(tmp_path) == ["step"]


def test_beside_the_shards(tmp_path):
    write_shards(tmp_path / "step" / "sharded", floats(), 2)
    consolidate_safetensors_files(tmp_path / "step" / "sharded", tmp_path / "step")
    assert_same(read(tmp_path / "step"), floats())
    assert len(os.listdir(tmp_path / "step" / "sharded")) == 2
    reader = HuggingFaceStorageReader(str(tmp_path / "step"))
    assert reader.read_metadata().state_dict_metadata.keys() == floats().keys()


def test_from_transformers(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers.distributed.checkpoint")
    if not hasattr(transformers, "consolidate_distributed_checkpoint"):
        pytest.skip("this transformers has no consolidate_distributed_checkpoint")
    monkeypatch.setattr(upstream, "consolidate_safetensors_files", consolidate_safetensors_files)
    path = write_shards(tmp_path / "step", floats(), 3)
    assert transformers.is_sharded_checkpoint(path)
    transformers.consolidate_distributed_checkpoint(path)
    assert not transformers.is_sharded_checkpoint(path)
    assert_same(read(path), floats())


def test_alone_without_torch_distributed(tmp_path):
    shards = write_shards(tmp_path / "sharded", floats(), 2)
    consolidate_safetensors_files_on_every_rank(shards, tmp_path / "ours", dict.fromkeys(floats(), 1))
    assert_same(read(tmp_path / "ours"), floats())


def large(seed=0):
    """Some windows for each rank."""
    torch.manual_seed(seed)
    return floats() | {f"large.{number}": torch.randn(1024, 1024) for number in range(3)}


def _start(rank, ranks, store, function, arguments):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        function(rank, *arguments)
    finally:
        dist.destroy_process_group()


def on_ranks(ranks, tmp_path, function, *arguments):
    store = tmp_path / "store"
    mp.spawn(_start, (ranks, str(store), function, arguments), nprocs=ranks)
    store.unlink(missing_ok=True)


def _consolidate(rank, directory, mapping):
    # As torch's writer leaves them.
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in large().items()}
    shards = directory / "sharded"
    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(shards), mapping, save_distributed=True))
    for target in (directory / "ours", shards):
        consolidate_safetensors_files_on_every_rank(str(shards), str(target), mapping)
        assert_same(read(target), large())  # committed when any rank returns


def test_every_rank(tmp_path):
    mapping = {name: 1 + number % 2 for number, name in enumerate(large())}
    on_ranks(3, tmp_path, _consolidate, tmp_path, mapping)
    for path in (tmp_path / "ours", tmp_path / "sharded"):
        assert sorted(file.name for file in path.glob("*.safetensors")) == [MODEL.format(1, 2), MODEL.format(2, 2)]
    assert sorted(os.listdir(tmp_path)) == ["ours", "sharded"]


def _consolidate_in_group(rank, shards, target):
    group = dist.new_group([1, 2])
    # The others, too: a call of a rank that is not of the group does nothing.
    consolidate_safetensors_files_on_every_rank(shards, target, process_group=group)
    if rank != 0:
        assert_same(read(target), large())


def test_a_group_of_ranks(tmp_path):
    shards = write_shards(tmp_path / "sharded", large(), 2)
    on_ranks(3, tmp_path, _consolidate_in_group, shards, tmp_path / "ours")
    assert_same(read(tmp_path / "ours"), large())


def _fail(rank, directory):
    for kind in ("none", "other", "changed"):  # what rank 1 takes for the source
        with pytest.raises(dcp.api.CheckpointException) as caught:
            consolidate_safetensors_files_on_every_rank(directory / (kind if rank else "sharded"), directory / "ours")
        failures = caught.value.failures
        assert list(failures) == [0 if kind == "other" else 1]
        [(error, _)] = failures.values()
        assert isinstance(error, safering.Error), kind


def test_an_error_of_one_rank_is_raised_on_all(tmp_path):
    for name in ("sharded", "other"):
        dcp.save(large(), storage_writer=HuggingFaceStorageWriter(str(tmp_path / name), save_distributed=True))
    shutil.copytree(tmp_path / "sharded", tmp_path / "changed")
    [file] = (tmp_path / "changed").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    for at in range(len(content) // 2, len(content), 4096):
        content[at] ^= 1
    file.write_bytes(content)
    on_ranks(2, tmp_path, _fail, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["changed", "other", "sharded"]
