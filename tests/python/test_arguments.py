"""Wrong arguments are told in one line, where they are given, with what to give instead."""

from __future__ import annotations

import pytest
import torch

import safering
from safering.torch import (
    AsyncSaver,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    SaveLimits,
    load_file,
    reserve_staging_memory,
    safe_open,
    save_file,
)

ONE = {"a": torch.ones(2)}


@pytest.mark.parametrize(
    ("function", "arguments", "kind", "words"),
    [
        *[
            (function, {"backend": "ring"}, ValueError, "backend must be 'automatic', 'io_uring' or 'threads', not 'ring'")
            for function in (HuggingFaceStorageWriter, HuggingFaceStorageReader, AsyncSaver)
        ],
        *[
            (function, {"exchange": value}, ValueError, f"exchange must be .*, not {value!r}")
            for function in (HuggingFaceStorageWriter, HuggingFaceStorageReader, AsyncSaver)
            for value in ("maybe", True, None)
        ],
        *[
            (function, {"buffer_memory": value}, kind, "buffer_memory must be .*bytes, not")
            for function in (HuggingFaceStorageWriter, HuggingFaceStorageReader, AsyncSaver)
            for value, kind in ((-1, ValueError), (10, ValueError), ("48MiB", TypeError))
        ],
        *[
            (function, {"fqn_to_index_mapping": value}, (TypeError, ValueError), "fqn_to_index_mapping must")
            for function in (HuggingFaceStorageWriter, AsyncSaver)
            for value in ([1], "a", {"a": "b"}, {"a": 0}, {"a": -1}, {1: 1}, {"a": 1.5}, {"a": None}, {"a": 1 << 32})
        ],
        *[
            (function, {"limits": value}, TypeError, "limits must be a SaveLimits, not")
            for function in (HuggingFaceStorageWriter, AsyncSaver)
            for value in (3, None, {"processor_share": 0.1})
        ],
        *[
            (function, {"progress": 3}, TypeError, "progress must be called with")
            for function in (HuggingFaceStorageWriter, HuggingFaceStorageReader)
        ],
        (HuggingFaceStorageReader, {"verification": "some"}, ValueError, "verification must be 'off', 'covered' or 'all'"),
        (SaveLimits, {"processor_share": 3}, ValueError, "limits must not be negative"),
        (SaveLimits, {"bytes_per_second": -1}, ValueError, "limits must not be negative"),
        (reserve_staging_memory, {"size": -1}, ValueError, "size must be a number of bytes, not -1"),
        (reserve_staging_memory, {"size": "1GiB"}, ValueError, "size must be a number of bytes, not '1GiB'"),
    ],
)
def test_one_line_tells_what_to_give(function, arguments, kind, words):
    if function in (HuggingFaceStorageWriter, HuggingFaceStorageReader):
        arguments = {"path": "x"} | arguments
    with pytest.raises(kind, match=words) as raised:
        function(**arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: save_file([1], "x"), ValueError),
        (lambda: save_file({"a": 3}, "x"), ValueError),
        (lambda: save_file(ONE, "x", metadata=[1]), TypeError),
        (lambda: load_file("good", device="toaster"), RuntimeError),
        (lambda: safe_open("good", "tf"), ValueError),
        (lambda: safe_open("good", "np", device="cuda"), ValueError),
        (lambda: safe_open("good", "pt", backend="x"), ValueError),
        (lambda: safe_open("good", "pt").get_tensor("b"), safering.Error),
        (lambda: load_file("none"), FileNotFoundError),
        (lambda: load_file("."), IsADirectoryError),
        (lambda: safering.prune(".", keep_last=0), ValueError),
        (lambda: safering.set_latest("none"), safering.Error),
        (lambda: AsyncSaver().save([1], "x"), TypeError),
    ],
)
def test_calls_with_something_else(call, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(ONE, "good")
    with pytest.raises(kind) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_numbers_of_numpy_count():
    numpy = pytest.importorskip("numpy")
    HuggingFaceStorageWriter("x", {"a": numpy.int64(1)}, buffer_memory=numpy.int32(1 << 20))
