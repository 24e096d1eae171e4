"""The drop-in for `torch.distributed.checkpoint.HuggingFaceStorageWriter` and `HuggingFaceStorageReader`.

    from safering.torch import HuggingFaceStorageReader, HuggingFaceStorageWriter

and nothing else changes. Or, for code that imports the whole of it,

    import safering.torch as dcp  # was: import torch.distributed.checkpoint as dcp

What this module does not define is torch.distributed.checkpoint's then; its `save` and `load` are the quick ones, for
state dicts of very many tensors. `install()` puts all of them in place of torch's, for code that imports those itself.
`save_file`, `load_file`, `safe_open`, `save_model` and `load_model` take the place of `safetensors.torch`'s.
"""

from typing import Any

# Clients use safetensors.torch without importing it, relying on torch's module having done so.
import safetensors.torch  # noqa: F401
import torch.distributed.checkpoint as _dcp

from ._async_saver import AsyncSaver, PendingSave, release_staging_memory, reserve_staging_memory
from ._consolidate import consolidate_safetensors_files, consolidate_safetensors_files_on_every_rank
from ._files import load_file, safe_open, save_file
from ._install import install, uninstall
from ._limits import SaveLimits
from ._load import load
from ._model import load_model, save_model
from ._planner import DefaultLoadPlanner, DefaultSavePlanner
from ._quantized import QuantizedHuggingFaceStorageReader
from ._reader import HuggingFaceStorageReader
from ._save import Save, save
from ._writer import HuggingFaceStorageWriter

__all__ = [
    "AsyncSaver",
    "DefaultLoadPlanner",
    "DefaultSavePlanner",
    "HuggingFaceStorageReader",
    "HuggingFaceStorageWriter",
    "PendingSave",
    "QuantizedHuggingFaceStorageReader",
    "Save",
    "SaveLimits",
    "consolidate_safetensors_files",
    "consolidate_safetensors_files_on_every_rank",
    "install",
    "uninstall",
    "load",
    "load_file",
    "load_model",
    "release_staging_memory",
    "reserve_staging_memory",
    "safe_open",
    "save",
    "save_file",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and hasattr(_dcp, name):
        return getattr(_dcp, name)
    raise AttributeError(f"neither {__name__!r} nor {_dcp.__name__!r} has an attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | (name for name in dir(_dcp) if not name.startswith("_")))
