"""Reports of saves and loads, and the counters of all of them."""

import dataclasses
import json
import pickle
import re

import pytest
import safering
import safering.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safering.torch import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

import ranks


def samples():
    out = {}
    for line in safering.prometheus_text().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            out[name] = float(value)
    return out


@pytest.fixture
def state():
    return {"a": torch.arange(5000.0), "b": torch.ones(3, 4, dtype=torch.bfloat16)}


def test_a_save_and_a_load_are_reported(tmp_path, state):
    before = samples()
    writer = HuggingFaceStorageWriter(str(tmp_path / "c"))
    dcp.save(state, storage_writer=writer)
    report = writer.report
    assert isinstance(report, safering.SaveReport) and report.tensor_bytes == 20024
    assert report.work == writer.work
    assert report.work.requests > 0 and report.work.direct_bytes + report.work.cached_bytes >= 20024
    assert report.work.digests == report.work.pieces == 2
    assert report.work.seconds >= report.work.transfer_seconds > 0
    assert report.prepare_seconds > 0 and report.commit_seconds > 0

    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    reader = HuggingFaceStorageReader(str(tmp_path / "c"))
    dcp.load(target, storage_reader=reader)
    assert isinstance(reader.report, safering.LoadReport)
    assert reader.report.tensor_bytes == reader.report.verified_bytes == 20024
    assert reader.report.work.digests == 2 and reader.report.work.verify_seconds > 0

    risen = {name: value - before[name] for name, value in samples().items()}
    assert risen['safering_saves_total{result="good"}'] == 1
    assert risen["safering_saved_bytes_total"] == risen["safering_loaded_bytes_total"] == 20024
    assert risen['safering_requests_total{direction="write"}'] == report.work.requests


def test_a_load_in_several_reads_is_summed(tmp_path, state):
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(tmp_path / "c")))
    target = {"a": torch.zeros(5000), "b": torch.zeros(3, 4)}  # another dtype goes by a copy of its own
    reader = HuggingFaceStorageReader(str(tmp_path / "c"))
    dcp.load(target, storage_reader=reader)
    # The blocks of one read may hold all of another's tensor, which is checked there too.
    assert reader.report.tensor_bytes == 20024 and reader.report.work.requests == 2 <= reader.report.work.digests
    assert torch.equal(target["b"], torch.ones(3, 4))


def test_reports_are_mappings_and_travel(tmp_path, state):
    writer = HuggingFaceStorageWriter(str(tmp_path / "c"))
    dcp.save(state, storage_writer=writer)
    report = pickle.loads(pickle.dumps(writer.report))
    assert report == writer.report and dict(report) == dict(writer.report)
    assert report["files"] == report.files == 1 and "work" in report and "nothing" not in report
    assert dataclasses.replace(report, files=2)["files"] == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.files = 2


def save_by(way: str, path: str) -> tuple:
    """Rank 1 has the threads backend. One tensor in two parts, and one that rank 0 writes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {"a": distribute_tensor(torch.arange(40000.0).reshape(400, 100), mesh, [Shard(0)]), "b": torch.ones(8)}
    backend = "threads" if dist.get_rank() == 1 else "automatic"
    if way == "async":
        with safering.torch.AsyncSaver(backend=backend) as saver:
            return saver.save(state, path).result(60), None
    writer = HuggingFaceStorageWriter(path, backend=backend)
    {"dcp": dcp.save, "short": safering.torch.save}[way](state, storage_writer=writer)
    return writer.report, writer.work


@pytest.mark.parametrize("way", ["dcp", "short", "async"])
def test_the_coordinator_is_told_of_every_rank(tmp_path, way):
    (report, work), (others, other_work) = ranks.run(2, save_by, way, str(tmp_path / "c"))
    assert [rank.rank for rank in report.ranks] == [0, 1]
    first, second = report.ranks
    assert (first.backend, first.reason) == (report.backend, report.reason)
    assert second.backend == "threads" and second.reason != first.reason
    if way == "async":  # the other rank learns what was saved
        assert (others.ranks, others.summary, others.tensor_bytes) == ([], None, report.tensor_bytes)
        other_work = others.work
    else:
        assert others is None and work == report.work
    # What travels is in microseconds.
    assert first.work.to_dict() == pytest.approx(report.work.to_dict(), abs=1e-6)
    assert second.work.to_dict() == pytest.approx(other_work.to_dict(), abs=1e-6)

    summary = report.summary
    assert summary.total == first.work + second.work
    assert summary.total.direct_bytes + summary.total.cached_bytes >= report.tensor_bytes
    by_rank = [rank.work.transfer_seconds for rank in report.ranks]
    spread = summary.spreads["transfer_seconds"]
    assert (spread.min, spread.max) == (min(by_rank), max(by_rank))
    assert spread.max_rank == by_rank.index(spread.max) and spread.median == pytest.approx(sum(by_rank) / 2)
    assert [(one.backend, one.reason, one.ranks) for one in summary.backends] == [
        (first.backend, first.reason, [0]), ("threads", second.reason, [1])
    ]
    noted = any(note.startswith("rank 1 wrote by threads, not io_uring") for note in report.notes)
    assert noted == (first.backend == "io_uring")

    text = str(report)
    assert re.match(rf"{tmp_path}/c: 156.3 KiB of tensors in 1 file, new; prepare .*\n2 ranks: ", text)
    assert f"\nthreads         rank 1: {second.reason}\n" in text
    assert json.loads(json.dumps(report.to_dict()))["ranks"][1]["work"] == second.work.to_dict()
    assert pickle.loads(pickle.dumps(report)) == report


def test_windows_of_copies_are_one_rank_s_work(tmp_path, state):
    state["c"] = torch.arange(6.0).reshape(2, 3).t()  # not contiguous
    writer = HuggingFaceStorageWriter(str(tmp_path / "c"))
    dcp.save(state | {"d": torch.ones(2, 2, dtype=torch.complex64).conj()}, storage_writer=writer)
    [rank] = writer.report.ranks
    assert rank.work.to_dict() == pytest.approx(writer.work.to_dict(), abs=1e-5)
    assert "1 rank: " in writer.report.text
