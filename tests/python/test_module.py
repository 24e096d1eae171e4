"""`import safering.torch as dcp` in place of `import torch.distributed.checkpoint as dcp`."""

import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as torchs

import safering.torch as dcp


def test_has_what_torchs_has():
    public = [name for name in dir(torchs) if not name.startswith("_")]
    assert set(public) <= set(dir(dcp))
    for name in public:
        if name in dcp.__all__:
            assert getattr(dcp, name).__module__.startswith("safering."), name
        else:
            assert getattr(dcp, name) is getattr(torchs, name), name


def test_every_way_of_saving(tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": [torch.ones(4), torch.tensor(7)]}
    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(tmp_path / "1")), no_dist=True)
    dcp.async_save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(tmp_path / "2")), no_dist=True).result(60)
    dcp.save(state, storage_writer=dcp.FileSystemWriter(str(tmp_path / "3")), no_dist=True)
    readers = [dcp.HuggingFaceStorageReader, dcp.HuggingFaceStorageReader, dcp.FileSystemReader]
    for step, reader in enumerate(readers, 1):
        loaded = {"a": torch.zeros(2, 3), "b": [torch.zeros(4), torch.tensor(0)]}
        dcp.load(loaded, storage_reader=reader(str(tmp_path / f"{step}")), no_dist=True)
        assert torch.equal(loaded["a"], state["a"]) and torch.equal(loaded["b"][0], state["b"][0])
        assert loaded["b"][1] == 7


def test_what_is_nowhere():
    with pytest.raises(AttributeError, match="'safering.torch' nor 'torch.distributed.checkpoint' .* 'saev'"):
        dcp.saev
    with pytest.raises(ImportError, match="saev"):
        from safering.torch import saev  # noqa: F401
    assert not hasattr(dcp, "_async_thread_executor")


def test_modules_that_are_imported_later():
    code = "import safering.torch as dcp, torch.distributed.checkpoint.state_dict; print(dcp.state_dict.__name__)"
    printed = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout == "torch.distributed.checkpoint.state_dict\n"
