"""Which reactor a writer or reader gets: one for what was given, one for each file system that was measured."""

import os
import types

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safering import _native, _runtime
from safering.torch import HuggingFaceStorageReader, HuggingFaceStorageWriter, load_file, save_file

STATE = {"a": torch.arange(5000.0)}


@pytest.fixture(autouse=True)
def nothing_looked_up(monkeypatch):
    monkeypatch.setattr(_runtime, "_tuned", {})


def save_and_load(path, **options):
    writer = HuggingFaceStorageWriter(str(path), **options)
    dcp.save(STATE, storage_writer=writer)
    reader = HuggingFaceStorageReader(str(path), **options)
    dcp.load({"a": torch.zeros(5000)}, storage_reader=reader)
    return writer.report, reader.report


def test_reports_say_where_the_numbers_came_from(tmp_path):
    for report in save_and_load(tmp_path / "a"):
        assert (report.origin, report.buffer_count, report.buffer_bytes) == ("defaults", 12, 4 << 20)
    for report in save_and_load(tmp_path / "b", buffer_memory=16 << 20):
        assert (report.origin, report.buffer_count) == ("", 4)
    assert _runtime.info()["origin"] == "defaults"


def test_file_systems_that_nobody_measured_share_a_reactor(tmp_path):
    usual = _runtime.reactor()
    assert _runtime.reactor(path=tmp_path) is usual
    assert _runtime.reactor(path=tmp_path / "not" / "there") is usual
    assert _runtime.reactor(path="/proc/self") is usual
    assert _runtime.reactor(buffer_memory=48 << 20, path=tmp_path) is not usual


def test_a_measured_file_system_has_a_reactor_of_its_own(tmp_path, monkeypatch):
    made = []

    class Reactor(_native.Reactor):
        @staticmethod
        def tuned(path, backend):
            made.append((path, backend))
            return _native.Reactor(backend, 16 << 20)

    monkeypatch.setattr(_runtime, "_native", types.SimpleNamespace(Reactor=Reactor))
    reactor = _runtime.reactor(path=tmp_path / "step-1")
    assert made == [(os.fsencode(tmp_path / "step-1"), "automatic")]
    # Looked up once: ranks reach each other through it.
    assert _runtime.reactor(path=tmp_path) is reactor
    assert len(made) == 1
    assert _runtime.reactor() is not reactor and _runtime.reactor(buffer_memory=16 << 20, path=tmp_path) is not reactor

    for report in save_and_load(tmp_path / "step-1"):
        assert report.buffer_count == 4
    for report in save_and_load(tmp_path / "step-2", buffer_memory=20 << 20):
        assert report.buffer_count == 5
    save_file(STATE, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors")["a"].equal(STATE["a"])
    assert len(made) == 1
