"""QuantizedHuggingFaceStorageReader, against torch's where that is right, else against plain arithmetic."""

import json
import math
import os
import pickle
import random

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

import safering
from safering.torch import HuggingFaceStorageReader, HuggingFaceStorageWriter, QuantizedHuggingFaceStorageReader
from safering.torch import _dequantize, _quantized, _tensors

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
F8 = torch.float8_e4m3fn


def write(path, files, index=True):
    """A directory of files, each {name: tensor}."""
    os.makedirs(path, exist_ok=True)
    weight_map = {}
    for number, tensors in enumerate(files):
        name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        save_file(tensors, path / name)
        weight_map |= dict.fromkeys(tensors, name)
    if index:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def write_shards(path, name, tensor, dim, parts, number=0):
    """A tensor in DCP's shards, a file each."""
    os.makedirs(path, exist_ok=True)
    offset = 0
    for part in tensor.tensor_split(parts, dim):
        offsets = [0] * tensor.dim()
        offsets[dim] = offset
        offset += part.shape[dim]
        number += 1
        save_file(
            {name: part.contiguous()},
            path / f"shard-{number:05d}-model-00001-of-00001.safetensors",
            metadata={"DCP_SHARDING_INFO": json.dumps({name: {"saved_offsets": offsets}}), "DCP_VERSION": "1.0"},
        )
    return number


def quantize(rows, columns, block, seed=0, scale_dtype=torch.float32):
    torch.manual_seed(seed)
    weight = (torch.randn(rows, columns) * 50).to(F8)
    scales = torch.rand(-(-rows // block), -(-columns // block)).add(0.01).to(scale_dtype)
    return weight, scales


def dequantized(weight, scales, block, dtype=torch.float32):
    every = scales.float().repeat_interleave(block, -2).repeat_interleave(block, -1)
    return (weight.float() * every[..., : weight.shape[-2], : weight.shape[-1]]).to(dtype)


def expanded(blocks, scales):
    """MXFP4, a value at a time."""
    codes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    codes += [-value for value in codes]
    out = []
    for group, scale in zip(blocks.reshape(-1, blocks.shape[-1]).tolist(), scales.flatten().tolist()):
        power = math.nan if scale == 255 else 2.0 ** (scale - 127)
        for byte in group:
            out += [codes[byte & 15] * power, codes[byte >> 4] * power]
    return torch.tensor(out, dtype=torch.float64).float().reshape(*blocks.shape[:-2], -1)


def load(reader, **targets):
    dcp.load(targets, storage_reader=reader)
    return targets


class BoxPlanner:
    """Loads boxes of tensors: {fqn: [(offsets, sizes), ...]}."""

    def __init__(self, metadata, boxes, dtype=torch.float32):
        self.items, self.out = [], {}
        for fqn, wanted in boxes.items():
            chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in wanted]
            self.items += create_read_items_for_chunk_list(fqn, metadata.state_dict_metadata[fqn], chunks)
            for chunk in chunks:
                self.out[fqn, chunk.offsets] = torch.full(chunk.sizes, 77.0, dtype=dtype)

    def resolve_tensor(self, item):
        tensor = self.out[item.dest_index.fqn, item.dest_index.offset]
        return tensor[tuple(slice(o, o + n) for o, n in zip(item.dest_offsets, item.lengths))]

    def commit_tensor(self, item, tensor):
        pass


def read_boxes(reader, boxes, dtype=torch.float32):
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, True)
    planner = BoxPlanner(metadata, boxes, dtype)
    reader.read_data(LoadPlan(planner.items), planner)
    return planner.out


def random_box(shape, rng):
    begin = [rng.randrange(extent) for extent in shape]
    return begin, [rng.randint(1, extent - first) for extent, first in zip(shape, begin)]


def box_of(tensor, begin, sizes):
    return tensor[tuple(slice(b, b + n) for b, n in zip(begin, sizes))]


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(1e30), b.nan_to_num(1e30))


def test_is_torchs_reader_with_its_arguments():
    reader = QuantizedHuggingFaceStorageReader("somewhere", 4, torch.bfloat16, 64)
    assert isinstance(reader, (dcp.QuantizedHuggingFaceStorageReader, HuggingFaceStorageReader))
    assert (reader.target_dtype, reader.block_size, reader.thread_count) == (torch.bfloat16, 64, 4)
    plain = QuantizedHuggingFaceStorageReader(path="somewhere")
    assert (plain.target_dtype, plain.block_size, plain.thread_count) == (torch.float32, 128, 1)
    with pytest.raises(ValueError, match="block_size"):
        QuantizedHuggingFaceStorageReader("somewhere", block_size=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, columns", [(256, 384), (300, 130), (5, 7)])
def test_equals_torchs(tmp_path, dtype, rows, columns):
    weight, scales = quantize(rows, columns, 128)
    bias = torch.randn(9)
    write(tmp_path, [{"a.weight": weight, "a.bias": bias}, {"a.weight_scale_inv": scales}])
    results = []
    for kind in (QuantizedHuggingFaceStorageReader, dcp.QuantizedHuggingFaceStorageReader):
        targets = {"a.weight": torch.zeros(rows, columns, dtype=dtype), "a.bias": torch.zeros(9)}
        results.append(load(kind(str(tmp_path), target_dtype=dtype), **targets))
    for name in results[0]:
        assert same(results[0][name], results[1][name])
    assert same(results[0]["a.weight"], dequantized(weight, scales, 128, dtype))
    assert torch.equal(results[0]["a.bias"], bias)


def test_rounds_to_the_target_dtype_before_the_tensors_own(tmp_path):
    weight, scales = quantize(64, 64, 16)
    write(tmp_path, [{"w": weight, "w_scale_inv": scales}])
    got = load(
        QuantizedHuggingFaceStorageReader(str(tmp_path), target_dtype=torch.bfloat16, block_size=16),
        w=torch.zeros(64, 64, dtype=torch.float64),
    )
    assert torch.equal(got["w"], dequantized(weight, scales, 16, torch.bfloat16).double())


def test_metadata_shows_what_will_be_loaded(tmp_path):
    weight, scales = quantize(20, 30, 8)
    write(tmp_path, [{"a.weight": weight, "a.weight_scale_inv": scales, "other": torch.ones(2)}])
    reader = QuantizedHuggingFaceStorageReader(str(tmp_path), target_dtype=torch.bfloat16, block_size=8)
    tensors = reader.read_metadata().state_dict_metadata
    assert tensors["a.weight"].properties.dtype == torch.bfloat16
    assert tensors["a.weight"].size == (20, 30)
    assert tensors["other"].properties.dtype == torch.float32
    # As with torch's reader, scales stay loadable under their own names.
    got = load(reader, **{"a.weight_scale_inv": torch.zeros_like(scales)})
    assert torch.equal(got["a.weight_scale_inv"], scales)


@pytest.mark.parametrize("seed", range(6))
def test_any_box_of_any_chunks(tmp_path, seed, monkeypatch):
    rng = random.Random(seed)
    block = rng.choice([1, 3, 16, 128])
    shape = (rng.randint(2, 300), rng.randint(2, 300))
    weight, scales = quantize(*shape, block, seed)
    number = write_shards(tmp_path, "w", weight, seed % 2, rng.randint(1, min(shape)) % 5 + 1)
    write_shards(tmp_path, "w_scale_inv", scales, 1, min(3, scales.shape[1]), number)
    expected = dequantized(weight, scales, block)
    if seed % 2:
        monkeypatch.setattr(_quantized, "WINDOW_BYTES", 1000)  # many windows, and items that are cut
        monkeypatch.setattr(_tensors, "WINDOW_BYTES", 1000)
        monkeypatch.setattr(_dequantize, "_CPU_SLAB", 500)
    reader = QuantizedHuggingFaceStorageReader(str(tmp_path), 1 + seed % 3, block_size=block)
    boxes = [((0, 0), shape)] + [random_box(shape, rng) for _ in range(8)]
    boxes = list({tuple(begin): (begin, sizes) for begin, sizes in boxes}.values())
    out = read_boxes(reader, {"w": boxes})
    for begin, sizes in boxes:
        assert torch.equal(out["w", torch.Size(begin)], box_of(expected, begin, sizes)), (begin, sizes)


def test_leading_dimensions_are_blocks_of_their_own(tmp_path):
    block = 16
    weight = torch.stack([quantize(40, 50, block, seed)[0] for seed in range(3)])
    scales = torch.stack([quantize(40, 50, block, seed)[1] for seed in range(3)])
    write(tmp_path, [{"experts": weight, "experts_scale_inv": scales}])
    expected = dequantized(weight, scales, block)
    out = read_boxes(
        QuantizedHuggingFaceStorageReader(str(tmp_path), block_size=block),
        {"experts": [((0, 0, 0), (3, 40, 50)), ((1, 17, 3), (2, 20, 40))]},
    )
    for offsets, tensor in out.items():
        assert torch.equal(tensor, box_of(expected, offsets[1], tensor.shape))


def test_reads_only_the_scales_that_a_box_needs(tmp_path):
    weight, scales = quantize(512, 512, 16)
    write(tmp_path, [{"w": weight, "w_scale_inv": scales}])
    reader = QuantizedHuggingFaceStorageReader(str(tmp_path), block_size=16)
    read_boxes(reader, {"w": [((16, 40), (32, 10))]})
    assert reader.report["tensor_bytes"] == 32 * 10 + 2 * 2 * 4


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float64, torch.float8_e8m0fnu])
def test_scales_of_other_dtypes(tmp_path, scale_dtype):
    weight, scales = quantize(100, 100, 32)
    scales = scales.to(scale_dtype)
    write(tmp_path, [{"w": weight, "w_scale_inv": scales}])
    got = load(QuantizedHuggingFaceStorageReader(str(tmp_path), block_size=32), w=torch.zeros(100, 100))
    assert torch.equal(got["w"], dequantized(weight, scales, 32))


def test_targets_that_are_no_plain_memory(tmp_path):
    weight, scales = quantize(40, 60, 16)
    write(tmp_path, [{"w": weight, "w_scale_inv": scales}])
    memory = torch.zeros(60, 80)
    load(QuantizedHuggingFaceStorageReader(str(tmp_path), block_size=16), w=memory[:, ::2].t())
    assert torch.equal(memory[:, ::2].t(), dequantized(weight, scales, 16))
    assert not memory[:, 1::2].any()


@pytest.mark.parametrize("threads", [1, 3])
def test_in_inference_mode(tmp_path, threads):
    weight, scales = quantize(64, 64, 16)
    write(tmp_path, [{"w": weight, "w_scale_inv": scales}])
    with torch.inference_mode():
        got = load(QuantizedHuggingFaceStorageReader(str(tmp_path), threads, block_size=16), w=torch.zeros(64, 64))
    assert torch.equal(got["w"], dequantized(weight, scales, 16))


def test_names_that_only_look_like_a_weight_and_its_scales(tmp_path):
    write(tmp_path, [{"input": torch.ones(4), "input_scale_inv": torch.ones(1)}])
    got = load(QuantizedHuggingFaceStorageReader(str(tmp_path)), input=torch.zeros(4), input_scale_inv=torch.zeros(1))
    assert torch.equal(got["input"], torch.ones(4))


def test_safering_checkpoint_is_verified(tmp_path):
    weight, scales = quantize(256, 256, 128)
    path = tmp_path / "saved"
    dcp.save({"w": weight, "w_scale_inv": scales}, storage_writer=HuggingFaceStorageWriter(str(path)))
    reader = QuantizedHuggingFaceStorageReader(str(path))
    got = load(reader, w=torch.zeros(256, 256))
    assert torch.equal(got["w"], dequantized(weight, scales, 128))
    assert reader.report["verified_bytes"] == 256 * 256 + 4 * 4
    [file] = path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(dcp.api.CheckpointException, match="changed|digest"):
        load(reader, w=torch.zeros(256, 256))


@pytest.mark.parametrize("index", [True, False])
def test_missing_or_unfit_scales(tmp_path, index):
    weight, scales = quantize(64, 64, 16)
    write(tmp_path, [{"alone": weight.clone(), "w": weight, "w_scale_inv": scales, "plain": torch.ones(3)}], index)
    reader = QuantizedHuggingFaceStorageReader(str(tmp_path), block_size=16)
    with pytest.raises(dcp.api.CheckpointException, match="'alone'.*no 'alone_scale_inv'"):
        load(reader, alone=torch.zeros(64, 64))
    assert torch.equal(load(reader, alone=torch.zeros(64, 64, dtype=F8))["alone"].float(), weight.float())
    reader = QuantizedHuggingFaceStorageReader(str(tmp_path), block_size=32)
    assert torch.equal(load(reader, plain=torch.zeros(3))["plain"], torch.ones(3))
    refusal = r"'w'.*blocks of 32 needs scales \(2, 2\).*\(4, 4\)"
    with pytest.raises(dcp.api.CheckpointException, match=refusal) as caught:
        load(reader, w=torch.zeros(64, 64))
    error = caught.value.failures[0][0]
    assert isinstance(error, safering.Error) and error.tensor == "w"


def test_a_weight_without_two_dimensions(tmp_path):
    write(tmp_path, [{"w": torch.zeros(8).to(F8), "w_scale_inv": torch.ones(1)}])
    with pytest.raises(dcp.api.CheckpointException, match="'w'.*1 dimensions"):
        load(QuantizedHuggingFaceStorageReader(str(tmp_path)), w=torch.zeros(8))


def test_travels_and_takes_metadata_of_another(tmp_path):
    weight, scales = quantize(64, 64, 16)
    write(tmp_path, [{"w": weight, "w_scale_inv": scales}])
    reader = QuantizedHuggingFaceStorageReader(str(tmp_path), block_size=16)
    metadata = reader.read_metadata()
    for other in (
        pickle.loads(pickle.dumps(reader)),
        QuantizedHuggingFaceStorageReader(str(tmp_path), block_size=16),
    ):
        other.set_up_storage_reader(metadata, False)
        planner = BoxPlanner(metadata, {"w": [((0, 0), (64, 64))]})
        other.read_data(LoadPlan(planner.items), planner)
        assert torch.equal(planner.out["w", torch.Size([0, 0])], dequantized(weight, scales, 16))


def mxfp4(*shape, seed=0):
    torch.manual_seed(seed)
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8)
    return blocks, torch.randint(110, 140, shape[:-1], dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4(tmp_path, dtype):
    blocks, scales = mxfp4(3, 5, 4, 16)
    write(tmp_path, [{"experts.up_blocks": blocks}, {"experts.up_scales": scales, "experts.up_bias": torch.ones(3)}])
    reader = QuantizedHuggingFaceStorageReader(str(tmp_path), target_dtype=dtype)
    shown = reader.read_metadata().state_dict_metadata["experts.up_blocks"]
    assert (shown.size, shown.properties.dtype) == ((3, 5, 128), dtype)
    got = load(reader, **{"experts.up_blocks": torch.zeros(3, 5, 128, dtype=dtype)})
    assert same(got["experts.up_blocks"], expanded(blocks, scales).to(dtype))


def test_mxfp4_every_code_and_scale(tmp_path):
    blocks = torch.arange(256, dtype=torch.uint8).repeat(256, 1).reshape(256, 16, 16)
    scales = torch.arange(256, dtype=torch.uint8).repeat_interleave(16).reshape(256, 16)
    write(tmp_path, [{"x_blocks": blocks, "x_scales": scales}])
    got = load(QuantizedHuggingFaceStorageReader(str(tmp_path)), x_blocks=torch.zeros(256, 512))
    assert same(got["x_blocks"], expanded(blocks, scales))


@pytest.mark.parametrize("seed", range(4))
def test_mxfp4_any_box_of_any_chunks(tmp_path, seed, monkeypatch):
    rng = random.Random(seed)
    blocks, scales = mxfp4(6, 9, 8, rng.choice([1, 4, 16]), seed=seed)
    number = write_shards(tmp_path, "x_blocks", blocks, seed % 3, 3)
    write_shards(tmp_path, "x_scales", scales, 1, 2, number)
    expected = expanded(blocks, scales)
    if seed % 2:
        monkeypatch.setattr(_quantized, "WINDOW_BYTES", 200)
        monkeypatch.setattr(_tensors, "WINDOW_BYTES", 200)
        monkeypatch.setattr(_dequantize, "_CPU_SLAB", 100)
    boxes = [((0, 0, 0), tuple(expected.shape))] + [random_box(expected.shape, rng) for _ in range(8)]
    boxes = list({tuple(begin): (begin, sizes) for begin, sizes in boxes}.values())
    out = read_boxes(QuantizedHuggingFaceStorageReader(str(tmp_path)), {"x_blocks": boxes})
    for begin, sizes in boxes:
        assert torch.equal(out["x_blocks", torch.Size(begin)], box_of(expected, begin, sizes)), (begin, sizes)


def test_mxfp4_unfit_scales_and_names_of_others(tmp_path):
    blocks, scales = mxfp4(2, 3, 4, 16)
    other = {"y_blocks": torch.ones(4), "y_scales": torch.ones(4)}
    write(tmp_path, [{"x_blocks": blocks, "x_scales": scales[:, :2].contiguous()}, other])
    reader = QuantizedHuggingFaceStorageReader(str(tmp_path))
    assert torch.equal(load(reader, y_blocks=torch.zeros(4))["y_blocks"], torch.ones(4))
    with pytest.raises(dcp.api.CheckpointException, match=r"'x_blocks'.*needs scales \(2, 3, 4\)"):
        load(reader, x_blocks=torch.zeros(2, 3, 4, 16))


@pytest.mark.xfail(TORCH < (2, 14), reason="plans by the stored shape and leaves most values as they were", strict=True)
def test_torch_loads_mxfp4_whole(tmp_path):
    blocks, scales = mxfp4(2, 4, 6, 16)
    write(tmp_path, [{"x_blocks": blocks, "x_scales": scales}])
    got = load(dcp.QuantizedHuggingFaceStorageReader(str(tmp_path)), x_blocks=torch.zeros(2, 4, 192))
    assert torch.equal(got["x_blocks"], expanded(blocks, scales))
