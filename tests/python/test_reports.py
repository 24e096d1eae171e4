"""Reports of saves and loads, and the counters of all of them."""

import dataclasses
import pickle

import pytest
import safering
import torch
import torch.distributed.checkpoint as dcp
from safering.torch import HuggingFaceStorageReader, HuggingFaceStorageWriter


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
