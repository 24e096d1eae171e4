"""install() and uninstall(): who sees which class, and that nothing is left behind."""

import importlib
import pickle
import sys

import pytest
import torch.distributed.checkpoint as dcp

import safering.torch as st

HOMES = ["", ".default_planner", ".hf_storage", ".quantized_hf_storage", "._consolidate_hf_safetensors"]
USERS = [".state_dict_saver", ".state_dict_loader"]


def torch_modules():
    found = []
    for name in HOMES + USERS:
        try:
            found.append(importlib.import_module("torch.distributed.checkpoint" + name))
        except ModuleNotFoundError:
            pass  # older than the module
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before = [dict(vars(module)) for module in torch_modules()]
    yield
    st.uninstall()
    for module, names in zip(torch_modules(), before):
        now = dict(vars(module))
        assert {name for name in names.keys() | now.keys() if names.get(name) is not now.get(name)} == set(), module


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Writes and imports a module that holds the writer."""
    monkeypatch.syspath_prepend(tmp_path)
    imported = []

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        imported.append(name)
        return importlib.import_module(name)

    yield write
    for name in imported:
        sys.modules.pop(name, None)


FROM_TORCH = "from torch.distributed.checkpoint import HuggingFaceStorageWriter\n"
FROM_SAFERING = "from safering.torch import HuggingFaceStorageWriter\n"
TORCHS = dcp.HuggingFaceStorageWriter
OURS = st.HuggingFaceStorageWriter


def test_replaces_and_restores_in_torch():
    replaced = [name for name in st.__all__ if hasattr(dcp, name)]
    assert {"HuggingFaceStorageReader", "HuggingFaceStorageWriter"} <= set(replaced)
    torchs = {name: getattr(dcp, name) for name in replaced}
    st.install()
    for name in replaced:
        assert getattr(dcp, name) is getattr(st, name)
    assert dcp.hf_storage.HuggingFaceStorageReader is st.HuggingFaceStorageReader
    st.uninstall()
    assert {name: getattr(dcp, name) for name in replaced} == torchs


def test_replaces_every_name_that_both_have():
    st.install()
    for module in torch_modules():
        for name in set(st.__all__) & vars(module).keys():
            assert vars(module)[name] is getattr(st, name), f"{module.__name__}.{name}"


def test_clients_imported_before_and_after(client):
    before = client("client_before", FROM_TORCH)
    st.install()
    after = client("client_after", FROM_TORCH)
    assert before.HuggingFaceStorageWriter is after.HuggingFaceStorageWriter is OURS
    st.uninstall()
    assert before.HuggingFaceStorageWriter is after.HuggingFaceStorageWriter is TORCHS


def test_who_asked_for_safering_keeps_it(client):
    before = client("asks_before", FROM_SAFERING)
    st.install()
    after = client("asks_after", FROM_SAFERING)
    st.uninstall()
    assert before.HuggingFaceStorageWriter is after.HuggingFaceStorageWriter is OURS
    assert st.HuggingFaceStorageWriter is OURS and issubclass(OURS, TORCHS)


def test_twice_is_once(client):
    st.install()
    between = client("client_between", FROM_TORCH)
    st.install()
    st.uninstall()
    assert dcp.HuggingFaceStorageWriter is between.HuggingFaceStorageWriter is TORCHS
    st.uninstall()
    assert dcp.HuggingFaceStorageWriter is TORCHS
    st.install()
    assert dcp.HuggingFaceStorageWriter is OURS


def test_what_others_replace_meanwhile_stays(client, monkeypatch):
    holder = client("client_patched", FROM_TORCH)
    st.install()
    mine = object()
    holder.HuggingFaceStorageWriter = mine
    st.uninstall()
    assert holder.HuggingFaceStorageWriter is mine


def test_works_as_torchs_while_installed(tmp_path):
    st.install()
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
    assert isinstance(writer, OURS) and isinstance(writer, TORCHS)
    assert isinstance(writer, dcp.HuggingFaceStorageWriter)
    copy = pickle.loads(pickle.dumps(writer))  # as async_save sends it to a process
    assert type(copy) is OURS and copy.path == writer.path
