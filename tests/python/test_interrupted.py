"""Loads that are interrupted, and processes that save to one name: nothing goes on behind the caller's back, and nobody
fails for somebody else."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from states import assert_same, load, numbers, save

import safering.numpy
import safering.torch
from safering import _native
from safering.torch import HuggingFaceStorageReader

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


@pytest.mark.parametrize("function", [dcp.load, safering.torch.load])
@pytest.mark.parametrize("moment", ["start", "wait"])
def test_an_interrupted_load_writes_nothing_more(tmp_path, monkeypatch, function, moment):
    """Ctrl-C during a native call is raised when that returns: after the start of the load, or in the wait for it."""
    state = {f"t{i}": numbers(1 << 20) for i in range(16)}
    save(tmp_path / "c", state)
    targets = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    reader = HuggingFaceStorageReader(str(tmp_path / "c"))
    wait = _native.Reader.wait

    for name in ("start", "start_boxes") if moment == "start" else ("wait",):
        original = getattr(_native.Reader, name)

        def stopped(*arguments, original=original):
            if moment == "start":
                original(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(_native.Reader, name, stopped)
    with pytest.raises(BaseException) as raised:  # CheckpointException is no Exception
        function(targets, storage_reader=reader, no_dist=True)
    assert "KeyboardInterrupt" in repr(raised.value) or isinstance(raised.value, KeyboardInterrupt)
    with pytest.raises(ValueError, match="no load is under way"):
        wait(reader._native, None)
    monkeypatch.undo()
    assert_same(load(tmp_path / "c", state), state)


SAVES = """
import sys, numpy, safering.numpy

print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    safering.numpy.save_file({"w": numpy.full(1 << 20, int(sys.argv[2]))}, sys.argv[1])
"""


def test_processes_that_save_to_one_name(tmp_path):
    """A script that saves on every rank, without looking which it is: one whole file, and no error."""
    path = str(tmp_path / "model.safetensors")
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", SAVES, path, str(value)], stdin=pipe, stdout=pipe, text=True)
        for value in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0] * 4
    [value] = set(safering.numpy.load_file(path)["w"].tolist())
    assert value in range(4)
    assert os.listdir(tmp_path) == ["model.safetensors"]


CHILD = """
import multiprocessing, sys, torch
from safering.torch import AsyncSaver, SaveLimits

class Holder:
    pass

def child(path):
    holder = Holder()
    holder.itself = holder  # nothing ends it but the process
    holder.saver = AsyncSaver(limits=SaveLimits(bytes_per_second=20 << 20))
    holder.saver.save({"w": torch.ones(4 << 20)}, path)

if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=child, args=(sys.argv[1],))
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


def test_a_saver_that_a_forked_child_leaves_open_saves(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    subprocess.run([sys.executable, tmp_path / "child.py", tmp_path / "c"], check=True, timeout=120)
    state = {"w": torch.ones(4 << 20)}
    assert_same(load(tmp_path / "c", state), state)
