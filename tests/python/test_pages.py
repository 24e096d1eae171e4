"""Runs the Python blocks of README.md and docs/, those of a page one after another in one process, as a reader would."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
#: page -> (what its blocks import, what they leave)
PAGES = {
    "README.md": ([], ["step-1000/safering.manifest.json", "step-2000/safering.manifest.json"]),
    "docs/python.md": (
        ["transformers", "torch_checkpointing"],
        ["step-1000/safering.manifest.json", "checkpoints/latest", "bert/config.json", "many/safering.manifest.json",
         "native/step-1000/model_0.pt",
         "titan/sharded/safering.manifest.json", "titan/model.safetensors.index.json"],
    ),
    "docs/operations.md": ([], ["safering-seccomp.json"]),
}
# What torchtitan does with torch's classes, for a recipe that starts torchtitan.train.
TITAN = """
import torch, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files_on_every_rank
from torch.distributed.checkpoint.quantized_hf_storage import QuantizedHuggingFaceStorageReader

assert __name__ == "__main__"
for one in HuggingFaceStorageReader, HuggingFaceStorageWriter, QuantizedHuggingFaceStorageReader:
    assert one.__module__.startswith("safering."), one
state, mapping = {"a": torch.ones(2), "b": torch.ones(3)}, {"a": 1, "b": 2}
writer = HuggingFaceStorageWriter("titan/sharded", save_distributed=True, fqn_to_index_mapping=mapping)
dcp.save(state, storage_writer=writer)
consolidate_safetensors_files_on_every_rank("titan/sharded", "titan", mapping, num_threads=5)
# Without a mapping of the keys, as for adapters.
writer = HuggingFaceStorageWriter(path="titan-adapter", save_distributed=True, enable_consolidation=True)
dcp.save({"a": torch.ones(2)}, storage_writer=writer)
for path, names in (("titan", "ab"), ("titan-adapter", "a")):
    target = {name: torch.zeros_like(state[name]) for name in names}
    dcp.load(target, storage_reader=HuggingFaceStorageReader(path))
    assert all(torch.equal(target[name], state[name]) for name in names)
"""


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_no_page_is_forgotten():
    pages = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    assert [page for page in pages if blocks(page)] == sorted(PAGES, key=pages.index)


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, tmp_path):
    modules, left = PAGES[page]
    for module in modules:
        pytest.importorskip(module)
    (tmp_path / "torchtitan").mkdir()
    (tmp_path / "torchtitan" / "train.py").write_text(TITAN)
    (tmp_path / "default.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}))
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(blocks(page)))
    run = subprocess.run([sys.executable, script], cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [name for name in left if not (tmp_path / name).exists()] == []
