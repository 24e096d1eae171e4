"""Durable, atomic, fast safetensors checkpoints on io_uring.

`safering.torch` is the drop-in for PyTorch's distributed checkpoint (`HuggingFaceStorageWriter`,
`HuggingFaceStorageReader`) and for `safetensors.torch`; `safering.numpy` is the one for
`safetensors.numpy`. This package itself needs neither torch nor numpy.
"""

from ._errors import Error, StorageError
from ._files import safe_open
from ._native import prometheus_text
from ._reports import BackendRanks, LoadReport, RankReport, RankSpread, RankSummary, SaveReport, WorkReport
from ._runtime import info
from ._steps import StepCheckpoint, latest, list_checkpoints, prune, recover, set_latest

__all__ = [
    "BackendRanks",
    "Error",
    "LoadReport",
    "RankReport",
    "RankSpread",
    "RankSummary",
    "SaveReport",
    "StepCheckpoint",
    "StorageError",
    "WorkReport",
    "info",
    "latest",
    "list_checkpoints",
    "prometheus_text",
    "prune",
    "recover",
    "safe_open",
    "set_latest",
]
