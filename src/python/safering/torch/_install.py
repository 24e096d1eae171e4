"""install() and uninstall(): our classes in place of torch's, for code that imports torch's itself."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_PACKAGE = __package__  # safering.torch
_DCP = "torch.distributed.checkpoint"
#: What is replaced, and where torch defines it. What this torch lacks is passed over.
_HOMES = {
    "DefaultLoadPlanner": f"{_DCP}.default_planner",
    "DefaultSavePlanner": f"{_DCP}.default_planner",
    "HuggingFaceStorageWriter": f"{_DCP}.hf_storage",
    "HuggingFaceStorageReader": f"{_DCP}.hf_storage",
    "QuantizedHuggingFaceStorageReader": f"{_DCP}.quantized_hf_storage",
    "consolidate_safetensors_files": f"{_DCP}._consolidate_hf_safetensors",
    "consolidate_safetensors_files_on_every_rank": f"{_DCP}._consolidate_hf_safetensors",
    "load": f"{_DCP}.state_dict_loader",
    "save": f"{_DCP}.state_dict_saver",
}

_lock = threading.RLock()
_originals: dict[str, Any] = {}  # name -> torch's object; empty: not installed
_replaced: list[tuple[ModuleType, str]] = []
_known: set[str] = set()  # modules that were there at the first install()


def install() -> None:
    """Puts safering's classes and functions in place of torch's under torch's names, for the whole process: in
    `torch.distributed.checkpoint` and in every imported module that holds torch's under the same name, as
    `transformers.distributed.checkpoint` does. Modules that are imported later find ours by themselves. The default
    planners are among them, so every storage is planned by ours then; and dcp.save and dcp.load, through which the
    thread of an async_save goes too. These hand over to torch's what is not for our classes.

    Not reached: a torch class that somebody derived from, holds under another name, or made an instance of before.
    Such an instance works on, but cannot be pickled (so not used by an `async_save` in a process) until uninstall().

    May be called again: modules that were imported since are looked at, everything else stays. Any thread may call
    it; a module that another thread is importing meanwhile may be missed, and another call catches it.
    """
    with _lock:
        if not _originals:
            _known.update(sys.modules)
        _originals.update(_find_originals())
        for _, module, name in _holders(_originals):
            setattr(module, name, _ours(name))
            _replaced.append((module, name))


def uninstall() -> None:
    """Takes out what install() put in: every module that it changed holds torch's again, and so does every module
    that was imported since and found ours under torch's name. A module whose code imports safering keeps what it
    asked for, and a name that somebody else has replaced meanwhile keeps that. Without an install() before, nothing
    happens. Any thread may call it.
    """
    with _lock:
        for module, name in _replaced:
            if vars(module).get(name) is _ours(name):
                setattr(module, name, _originals[name])
        for key, module, name in _holders({name: _ours(name) for name in _originals}):
            if key not in _known and not _imports_safering(module):
                setattr(module, name, _originals[name])
        _replaced.clear()
        _originals.clear()
        _known.clear()


def _ours(name: str) -> Any:
    return getattr(sys.modules[_PACKAGE], name)


def _find_originals() -> Iterator[tuple[str, Any]]:
    for name, home in _HOMES.items():
        try:
            original = getattr(importlib.import_module(home), name, None)
        except ModuleNotFoundError as error:
            if error.name != home:
                raise
            continue  # this torch is older than the class
        if original is not None and original is not _ours(name):
            yield name, original


def _holders(objects: dict[str, Any]) -> Iterator[tuple[str, ModuleType, str]]:
    """The modules outside safering that hold one of the objects under its name."""
    for key, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or key.partition(".")[0] == "safering":
            continue
        held = vars(module)  # not getattr, which would make lazy modules import what they are asked for
        for name, value in objects.items():
            if held.get(name) is value:
                yield key, module, name


def _imports_safering(module: ModuleType) -> bool:
    """Whether the module's own code does; True too where there is no code to ask."""
    try:
        spec = module.__spec__
        code = spec.loader.get_code(spec.name)
    except (AttributeError, ImportError):
        code = None
    return code is None or any(name.partition(".")[0] == "safering" for name in code.co_names)
