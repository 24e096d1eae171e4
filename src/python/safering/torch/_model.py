"""`save_model` and `load_model`: in place of `safetensors.torch`'s. Tensors that share memory are saved once."""

from __future__ import annotations

import os
from collections.abc import Collection

import torch

from ._files import load_file, save_file, shared_names, span

__all__ = ["load_model", "save_model"]


def save_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
    force_contiguous: bool = True,
) -> None:
    """Writes the state dict of `model` to one file, as `save_file` does. Of tensors that share memory (tied weights)
    the one that holds all of it is saved, of several the first by name; the header's metadata says of each other name
    which that was.

    Args:
        metadata: further `__metadata__` of the header; an entry by the name of a tensor stays as it is.
        force_contiguous: accepted; tensors of any strides are written in C order from where they lie.

    Raises as `save_file`, and RuntimeError where no one of the tensors that share memory holds all of it.
    """
    state_dict = model.state_dict()
    metadata = dict(metadata or {})
    for kept, others in _duplicates(state_dict, ()).items():
        for name in others:
            metadata.setdefault(name, kept)
            del state_dict[name]
    save_file(state_dict, filename, metadata or None)


def load_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    strict: bool = True,
    device: str | int | torch.device = "cpu",
    *,
    backend: str = "automatic",
) -> tuple[list[str], list[str]]:
    """Fills `model` with the tensors of one file, by `load_state_dict`. Names whose memory a loaded tensor fills too
    need not be in the file.

    Args:
        strict: RuntimeError where names are missing or unexpected.
        device: where the tensors of the file go before they are copied.
        backend: as `load_file` has it.

    Returns:
        (missing, unexpected): names of the model that nothing was loaded for, and of the file that the model lacks or
        has twice.

    Raises as `load_file`, and RuntimeError for shapes that differ.
    """
    loaded = load_file(filename, device, backend=backend)
    others = [name for names in _duplicates(model.state_dict(), loaded).values() for name in names]
    lacking, unexpected = model.load_state_dict(loaded, strict=False)
    missing = sorted(set(lacking).difference(others))
    unexpected = [*unexpected, *(name for name in others if name in loaded)]
    if strict and (missing or unexpected):
        raise RuntimeError(
            f"{os.fspath(filename)} does not fit {type(model).__name__}:"
            + "".join(
                f"\n    {what} key(s) in state_dict: {', '.join(map(repr, sorted(names)))}"
                for what, names in (("Missing", missing), ("Unexpected", unexpected))
                if names
            )
        )
    return missing, unexpected


def _duplicates(state_dict: dict[str, torch.Tensor], preferred: Collection[str]) -> dict[str, list[str]]:
    """Of tensors that share memory, the one that holds all of it -> the others. Of several, one of the preferred."""
    out: dict[str, list[str]] = {}
    for names in shared_names(state_dict):
        spans = {name: span(state_dict[name]) for name in names}
        whole = (min(begin for begin, _ in spans.values()), max(end for _, end in spans.values()))
        holders = [
            name
            for name in names
            if spans[name] == whole
            and state_dict[name].numel() * state_dict[name].element_size() == whole[1] - whole[0]
        ]
        if not holders:
            raise RuntimeError(
                f"of the tensors {names}, which share memory, none holds all of it: saved alone, each would lose what "
                "the others have. clone() them, and save them with save_file"
            )
        kept = min(holders, key=lambda name: (name not in preferred, name))
        out[kept] = [name for name in names if name != kept]
    return out
