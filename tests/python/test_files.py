"""save_file, load_file and safe_open of safering.torch and safering.numpy, beside safetensors' own."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pickle
import random
import signal
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

import safering
import safering.numpy
import safering.torch
from safering import _files, _native
from safering.torch._dtypes import CODES

DTYPES = list(CODES)
NUMPY_DTYPES = [
    "bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64", "complex64",
]  # fmt: skip
ML_DTYPES = ["bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e5m2fnuz", "float8_e4m3fnuz"]


def tensor_of(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Any bits, NaNs with payloads included; of bool 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype is torch.bool else 256
    count = torch.Size(shape).numel() * dtype.itemsize
    data = torch.randint(0, high, (count,), generator=generator, dtype=torch.uint8)
    return data.view(dtype).reshape(shape) if shape else data.view(dtype)[0]


def data_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().as_strided((tensor.numel(),), (1,))  # one element may have any stride
    return flat.view(torch.uint8).numpy().tobytes()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and data_of(a) == data_of(b)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# --- both ways


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_goes_both_ways(path, dtype):
    shapes = {"matrix": (3, 4), "vector": (5,), "none": (0, 3), "large": (70, 512)}
    if dtype != getattr(torch, "float4_e2m1fn_x2", None):  # of which there is no scalar
        shapes["scalar"] = ()
    tensors = {name: tensor_of(dtype, shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    for save, load in (
        (safering.torch.save_file, safetensors.torch.load_file),
        (safetensors.torch.save_file, safering.torch.load_file),
        (safering.torch.save_file, safering.torch.load_file),
    ):
        save(tensors, path)
        loaded = load(path)
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert same(loaded[name], tensor), name
        for opened in (safetensors.safe_open(path, "pt"), safering.safe_open(path, "pt")):
            assert opened.keys() == sorted(tensors)
            assert opened.get_slice("vector").get_dtype() == _native.dtype_names[CODES[dtype]]


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_every_numpy_dtype_goes_both_ways(path, name):
    data = np.random.default_rng(1).integers(0, 2 if name == "bool" else 256, 24 * 16, np.uint8).view(name)
    arrays = {"matrix": data[:12].reshape(3, 4), "none": data[:0].reshape(2, 0), "scalar": data[1:2].reshape(())}
    for save, load in (
        (safering.numpy.save_file, safetensors.numpy.load_file),
        (safetensors.numpy.save_file, safering.numpy.load_file),
    ):
        save(arrays, path)
        loaded = load(path)
        assert loaded.keys() == arrays.keys()
        for key, array in arrays.items():
            assert loaded[key].dtype == array.dtype and loaded[key].shape == array.shape
            assert loaded[key].tobytes() == array.tobytes()
            assert loaded[key].flags.writeable


@pytest.mark.parametrize("name", ML_DTYPES)
def test_dtypes_of_ml_dtypes(path, name):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed, numpy alone lacks these dtypes")
    array = np.arange(24, dtype=np.uint8).view(getattr(ml_dtypes, name)).reshape(3, -1)
    safetensors.numpy.save_file({"a": array}, path)
    assert safering.numpy.load_file(path)["a"].tobytes() == array.tobytes()
    safering.numpy.save_file({"a": array}, path)
    loaded = safering.numpy.load_file(path)["a"]
    assert loaded.dtype == array.dtype and loaded.tobytes() == array.tobytes()
    assert same(safetensors.torch.load_file(path)["a"], safering.torch.load_file(path)["a"])


def test_numpy_names_a_dtype_that_it_lacks(path):
    safering.torch.save_file({"a": torch.zeros(2), "four": torch.zeros(2, dtype=torch.uint8).view(DTYPES[-1])}, path)
    with pytest.raises(safering.Error, match="four.*F4"):
        safering.numpy.load_file(path)
    with safering.numpy.safe_open(path, "np") as file:
        assert file.get_tensor("a").tolist() == [0, 0]
        assert file.get_slice("four").get_shape() == [4]


def test_torch_names_a_dtype_that_it_lacks(path):
    header = json.dumps({"six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]},
                         "a": {"dtype": "U8", "shape": [1], "data_offsets": [3, 4]}}).encode()  # fmt: skip
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes([1, 2, 3, 7]))
    with pytest.raises(safering.Error, match="six.*F6_E2M3"):
        safering.torch.load_file(path)
    with safering.safe_open(path, "pt") as file:
        assert file.get_tensor("a").tolist() == [7]
        assert (file.get_slice("six").get_dtype(), file.get_slice("six").get_shape()) == ("F6_E2M3", [4])


def test_names_are_any_text(path):
    names = ["", "ü/…/模型", "../x", "a\0b", 'quote"\\', "x" * 4000, "\U0001f600"]
    tensors = {name: torch.full((3,), i) for i, name in enumerate(names)}
    safering.torch.save_file(tensors, path)
    for loaded in (safetensors.torch.load_file(path), safering.torch.load_file(path)):
        assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
            name: tensor.tolist() for name, tensor in tensors.items()
        }


def test_files_have_any_name(tmp_path):
    for name in (b"weights.bin", b".hidden", b"no suffix\n", b"\xff\xfe.safetensors"):
        path = os.path.join(os.fsencode(tmp_path), name)
        safering.torch.save_file({"a": torch.arange(3)}, os.fsdecode(path))
        assert safering.torch.load_file(os.fsdecode(path))["a"].tolist() == [0, 1, 2]
        with safering.safe_open(os.fsdecode(path), "pt") as file:
            assert file.get_slice("a")[1:].tolist() == [1, 2]
    os.symlink("weights.bin", tmp_path / "link")
    assert safering.torch.load_file(tmp_path / "link")["a"].tolist() == [0, 1, 2]


def test_metadata_is_what_was_given(path):
    for metadata in (None, {}, {"format": "pt"}, {"ü": "値\n", "b": ""}):
        for module, tensors in ((safering.torch, {"a": torch.ones(2)}), (safering.numpy, {"a": np.ones(2)})):
            module.save_file(tensors, path, metadata)
            with safering.safe_open(path, "pt") as file:
                assert file.metadata() == (metadata or None)
            with safetensors.safe_open(path, "pt") as file:
                assert (file.metadata() or None) == (metadata or None)
    safetensors.torch.save_file({}, path, {"only": "text"})
    with safering.safe_open(path, "pt") as file:
        assert (file.metadata(), file.keys(), file.get_tensors()) == ({"only": "text"}, [], {})
    safering.torch.save_file({}, path)
    assert safetensors.torch.load_file(path) == {}


def test_strides_are_written_in_order(path):
    base = torch.arange(120.0).reshape(4, 5, 6)
    tensors = {
        "permuted": base.clone().permute(2, 0, 1),
        "step": base.clone()[::2, :, 1::3],
        "expanded": torch.arange(3.0)[:, None].expand(3, 4),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj(),
        "negative": torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj().imag,
        "four": torch.arange(24, dtype=torch.uint8).view(DTYPES[-1]).reshape(4, 6).T,
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    safering.torch.save_file(tensors, path)
    loaded = safetensors.torch.load_file(path)
    for name, tensor in tensors.items():
        if name != "four":
            assert torch.equal(loaded[name], tensor), name
    assert loaded["four"].view(torch.uint8).tolist() == torch.arange(24, dtype=torch.uint8).reshape(4, 6).T.tolist()


def test_numpy_strides_and_byte_order(path):
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    pairs = np.zeros(3, dtype=[("a", "u1"), ("b", "<f4")])
    pairs["b"] = [1, 2, 3]
    arrays = {"t": base.T, "back": base[::-1, ::-2], "big": base.astype(">i4"), "odd": pairs["b"], "fixed": base[:]}
    arrays["fixed"].flags.writeable = False
    safering.numpy.save_file(arrays, path)
    for name, loaded in safetensors.numpy.load_file(path).items():
        assert np.array_equal(loaded, arrays[name]) and loaded.dtype.isnative, name


# --- parts


def random_index(rng: random.Random, shape: tuple[int, ...], least_step: int):
    def entry(size: int):
        if rng.random() < 0.3:
            return rng.randint(-size - (rng.random() < 0.1), max(size - 1, 0))
        ends = [rng.choice([None, rng.randint(-size - 2, size + 2)]) for _ in range(2)]
        return slice(*ends, rng.choice([None, 1, 2, 3, 7, *range(least_step, 0)]))

    entries = [entry(size) for size in shape[: rng.randint(0, len(shape))]]
    if entries and rng.random() < 0.4:
        cut = rng.randint(0, len(entries))
        entries = entries[:cut] + [...] + [entry(size) for size in shape[len(shape) - len(entries) + cut :]]
    if rng.random() < 0.2:
        entries.insert(rng.randint(0, len(entries)), None)
    if rng.random() < 0.1:
        entries.append(rng.choice([[0, 0], True, slice(None)]))
    return entries[0] if len(entries) == 1 and rng.random() < 0.5 else tuple(entries)


def outcome(get, index):
    try:
        return get(index)
    except (IndexError, ValueError, TypeError) as error:
        return type(error)


SHAPES = {"a": (), "b": (9,), "c": (5, 7), "d": (4, 3, 6), "e": (3, 2, 4, 5), "f": (4, 0, 3), "g": (300, 257)}


@pytest.mark.parametrize("window", [None, 200])
def test_random_slices_are_torchs(path, monkeypatch, window):
    if window:
        monkeypatch.setattr(_files, "_WINDOW_BYTES", window)
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    rng = random.Random(seed)
    tensors = {name: tensor_of(torch.bfloat16, shape, seed % 1000) for name, shape in SHAPES.items()}
    safetensors.torch.save_file(tensors, path)
    with safering.torch.safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in tensors}
        for name, tensor in tensors.items():
            assert slices[name].get_shape() == list(tensor.shape)
        for _ in range(700):
            name = rng.choice(list(tensors))
            index = random_index(rng, SHAPES[name], 1)
            wanted = outcome(tensors[name].__getitem__, index)
            found = outcome(slices[name].__getitem__, index)
            if isinstance(wanted, type):
                assert found is wanted, (name, index)
            else:
                assert same(found, wanted), (name, index)


def test_random_slices_are_numpys(path):
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    rng = random.Random(seed)
    arrays = {
        name: np.random.default_rng(seed).integers(0, 1 << 30, shape, np.int32) if shape else np.array(3, np.int32)
        for name, shape in SHAPES.items()
    }
    safetensors.numpy.save_file(arrays, path)
    with safering.numpy.safe_open(path, "np") as file:
        for _ in range(700):
            name = rng.choice(list(arrays))
            index = random_index(rng, SHAPES[name], -3)
            wanted = outcome(arrays[name].__getitem__, index)
            found = outcome(file.get_slice(name).__getitem__, index)
            if isinstance(wanted, type):
                assert found is wanted, (name, index)
            else:
                assert np.array_equal(found, wanted) and found.dtype == wanted.dtype, (name, index)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_of_every_dtype(path, dtype):
    tensor = tensor_of(dtype, (6, 8))
    raw = torch.frombuffer(bytearray(data_of(tensor)), dtype=torch.uint8).reshape(6, 8, dtype.itemsize)
    safering.torch.save_file({"a": tensor}, path)
    part = safering.safe_open(path, "pt").get_slice("a")
    assert part.get_shape() == [6, 8]
    for index in (slice(2, 5), (slice(None), slice(3, 7)), (slice(0, 6, 2), slice(1, 8, 3)), (1, 2), ..., -1):
        found = part[index]
        assert found.dtype == dtype
        assert data_of(found) == data_of(raw[index]), index


def test_a_wide_step_reads_row_by_row(path):
    rows = tensor_of(torch.uint8, (7, 3, 1 << 17))
    safering.torch.save_file({"a": rows, "four": rows.clone().view(DTYPES[-1])}, path)
    with safering.safe_open(path, "pt") as file:
        assert torch.equal(file.get_slice("a")[1::3], rows[1::3])
        assert torch.equal(file.get_slice("a")[2, ::2, 5:9000], rows[2, ::2, 5:9000])
        assert torch.equal(file.get_slice("a")[:, ::2], rows[:, ::2])
        assert torch.equal(file.get_slice("four")[1::3].view(torch.uint8), rows[1::3])
        assert torch.equal(file.get_slice("four")[:, ::2].view(torch.uint8), rows[:, ::2])


def test_only_what_is_named_is_read(path):
    tensors = {"a": torch.arange(1 << 16).reshape(256, 256), "b": torch.arange(1 << 16)}
    safering.torch.save_file(tensors, path)
    with safering.safe_open(path, "pt") as file:
        order = file.offset_keys()
        assert order == ["a", "b"]
        # What lies behind the first half of `a` is no longer there.
        os.truncate(path, os.path.getsize(path) - (3 << 18))
        assert torch.equal(file.get_slice("a")[:100], tensors["a"][:100])
        assert torch.equal(file.get_slice("a")[:120:3, 7], tensors["a"][:120:3, 7])
        with pytest.raises(safering.Error, match="end"):
            file.get_slice("a")[200:]
        with pytest.raises(safering.Error, match="end"):
            file.get_tensor("b")


def test_threads_share_a_file(path):
    tensors = {str(i): tensor_of(torch.float32, (64, 100), i) for i in range(20)}
    safering.torch.save_file(tensors, path)
    with safering.safe_open(path, "pt") as file, concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = [
            (name, row, pool.submit(lambda name=name, row=row: file.get_slice(name)[row : row + 5]))
            for name in tensors
            for row in range(0, 60, 7)
        ]
        for name, row, job in jobs:
            assert same(job.result(), tensors[name][row : row + 5])


def test_a_forked_child_reads(path):
    safering.torch.save_file({"a": torch.arange(1000)}, path)
    with safering.safe_open(path, "pt") as file:
        file.get_tensor("a")

        def child() -> int:
            try:
                return 0 if file.get_slice("a")[7:9].tolist() == [7, 8] else 1
            except safering.Error as error:
                return 2 if "replaced" in str(error) else 3

        assert in_child(child) == 0
        assert file.get_slice("a")[7:9].tolist() == [7, 8]
        safering.torch.save_file({"a": torch.zeros(1000)}, path)
        assert in_child(child) == 2
        assert file.get_slice("a")[7:9].tolist() == [7, 8]


def in_child(call) -> int:
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        os._exit(call())
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_in_windows(path):
    tensors = {str(i): tensor_of(torch.float32, (i,), i) for i in range(12)}
    safering.torch.save_file(tensors, path)
    file = safering.safe_open(path, "pt")
    file._arrays.window_bytes = 64
    loaded = file.get_tensors()
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    assert _files._windows([], 5) == []
    assert _files._windows([9, 1, 2, 3, 0, 4, 7], 5) == [(0, 1), (1, 3), (3, 5), (5, 6), (6, 7)]


def test_to_a_device(path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    tensors = {"a": torch.randn(300, 70), "b": torch.randn(5, 3).to("cuda").T, "four": tensor_of(DTYPES[-1], (4, 6))}
    safering.torch.save_file(tensors, path)
    for device in ("cuda", 0, "cuda:0", torch.device("cuda", 0)):
        loaded = safering.torch.load_file(path, device)
        for name, tensor in tensors.items():
            assert loaded[name].device == torch.device("cuda", 0) and same(loaded[name].cpu(), tensor.cpu())
        part = safering.safe_open(path, "pt", device).get_slice("a")[5:9, ::3]
        assert part.device.type == "cuda" and torch.equal(part.cpu(), tensors["a"][5:9, ::3])


def test_a_shard_is_read_as_it_stands(path):
    info = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [4, 0]}}), "DCP_VERSION": "1.0"}
    safetensors.torch.save_file({"w": torch.ones(2, 3)}, path, info)
    assert same(safering.torch.load_file(path)["w"], torch.ones(2, 3))
    with safering.safe_open(path, "pt") as file:
        assert file.metadata() == info and file.get_slice("w").get_shape() == [2, 3]


# --- a file that changes


def test_a_save_replaces_the_file_and_not_what_is_open(path):
    safering.torch.save_file({"a": torch.zeros(1000)}, path)
    with safering.safe_open(path, "pt") as file:
        safering.torch.save_file({"a": torch.ones(2000), "b": torch.ones(1)}, path)
        assert same(file.get_tensor("a"), torch.zeros(1000))
        assert torch.equal(file.get_slice("a")[10:20], torch.zeros(10))
    assert safering.torch.load_file(path).keys() == {"a", "b"}
    assert os.listdir(path.parent) == [path.name]


def test_a_save_that_fails_leaves_the_file(path):
    safering.torch.save_file({"a": torch.zeros(1000)}, path)
    before = path.read_bytes()
    for tensors in ({"__metadata__": torch.zeros(1)}, {"x" * 5000: torch.zeros(1)}):
        with pytest.raises(safering.Error) as caught:
            safering.torch.save_file(tensors, path)
        assert caught.value.file == str(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_mode_of_a_new_file(path):
    old = os.umask(0o027)
    try:
        safering.torch.save_file({"a": torch.zeros(1)}, path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_truncated_file_names_itself(path):
    safering.torch.save_file({"weight": torch.zeros(1000)}, path)
    data = path.read_bytes()
    for size in (0, 5, 8, 100, 4096, len(data) - 1):
        path.write_bytes(data[:size])
        for load in (
            lambda: safering.torch.load_file(path),
            lambda: safering.numpy.load_file(path),
            lambda: safering.safe_open(path, "pt"),
        ):
            with pytest.raises(safering.Error) as caught:
                load()
            assert caught.value.file == str(path) and str(path) in str(caught.value)
            assert isinstance(caught.value, safetensors.SafetensorError)
    assert caught.value.tensor == "weight"
    path.write_bytes(data + b"x")
    with pytest.raises(safetensors.SafetensorError, match="longer|trailing|behind|after"):
        safering.torch.load_file(path)


def test_a_file_that_is_cut_while_open_is_an_error(path):
    safering.torch.save_file({"a": torch.zeros(1 << 20)}, path)
    with safering.safe_open(path, "pt") as file:
        os.truncate(path, 1 << 20)
        with pytest.raises(safering.Error) as caught:
            file.get_tensor("a")
    assert caught.value.file == str(path)


# --- mistakes


def test_errors_travel_and_are_safetensors(path):
    path.write_bytes(b"\5\0\0\0\0\0\0\0{abc}")
    with pytest.raises(safetensors.SafetensorError) as caught:
        safering.torch.load_file(path)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is safering.Error and str(again) == str(caught.value) and again.file == str(path)
    with pytest.raises(safetensors.SafetensorError) as caught:
        safering.torch.save_file({"a": torch.ones(1)}, path.parent / "none" / "x")
    assert isinstance(caught.value, OSError) and caught.value.errno == 2
    assert pickle.loads(pickle.dumps(caught.value)).errno == 2


def test_files_that_are_none(tmp_path):
    for load in (safering.torch.load_file, safering.numpy.load_file):
        with pytest.raises(FileNotFoundError, match="nothing"):
            load(tmp_path / "nothing")
        with pytest.raises(IsADirectoryError):
            load(tmp_path)
    with pytest.raises(safering.Error, match="directory"):
        safering.torch.save_file({"a": torch.ones(1)}, tmp_path)


def test_unknown_names_and_closed_files(path):
    safering.torch.save_file({"a": torch.arange(3)}, path)
    with safering.safe_open(path, "pt") as file:
        part = file.get_slice("a")
        for get in (file.get_tensor, file.get_slice):
            with pytest.raises(safetensors.SafetensorError, match="'b'"):
                get("b")
    assert part[1:].tolist() == [1, 2]
    for call in (file.keys, file.offset_keys, file.metadata, file.get_tensors, lambda: file.get_tensor("a")):
        with pytest.raises(safetensors.SafetensorError, match="closed"):
            call()


def test_arguments(path):
    safering.torch.save_file({"a": torch.arange(3)}, path)
    for backend in ("automatic", "threads", "mmap", "pread"):
        assert safering.torch.load_file(path, backend=backend)["a"].tolist() == [0, 1, 2]
    for framework in ("pt", "torch", "pytorch"):
        assert isinstance(safering.safe_open(str(path), framework=framework).get_tensor("a"), torch.Tensor)
    for framework in ("np", "numpy"):
        assert isinstance(safering.safe_open(path, framework, device="cpu").get_tensor("a"), np.ndarray)
    for wrong in (
        lambda: safering.safe_open(path, "tf"),
        lambda: safering.safe_open(path, "np", "cuda"),
        lambda: safering.safe_open(path, "pt", "meta"),
        lambda: safering.safe_open(path, "pt", backend="fast"),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_what_save_file_refuses(path):
    weight = torch.arange(12.0).reshape(3, 4)
    for tensors, error, words in (
        ([weight], ValueError, "dict"),
        ({"a": [1]}, ValueError, "'a'.*list"),
        ({"a": weight.to_sparse()}, ValueError, "'a'.*sparse"),
        ({"a": weight.to("meta")}, ValueError, "'a'.*meta"),
        ({1: weight}, TypeError, "1"),
        ({"a": weight.to(torch.complex128)}, TypeError, "'a'.*complex128"),
    ):
        with pytest.raises(error, match=words):
            safering.torch.save_file(tensors, path)
    for metadata in ({"a": 1}, {1: "a"}, ["a"]):
        with pytest.raises(TypeError, match="metadata"):
            safering.torch.save_file({"a": weight}, path, metadata)
        with pytest.raises(TypeError, match="metadata"):
            safering.numpy.save_file({"a": np.ones(1)}, path, metadata)
    for arrays, error in (([1], ValueError), ({"a": [1]}, ValueError), ({"a": np.array(["x"])}, TypeError)):
        with pytest.raises(error):
            safering.numpy.save_file(arrays, path)
    assert not path.exists()


def test_tensors_that_share_memory_are_refused(path):
    weight = torch.arange(12.0).reshape(3, 4)
    for tensors, names in (
        ({"b": weight, "a": weight}, "'a', 'b'"),
        ({"a": weight, "part": weight[1], "other": torch.zeros(1)}, "'a', 'part'"),
        ({"a": weight, "t": weight.T}, "'a', 't'"),
        ({"a": weight[:2], "b": weight[1:]}, "'a', 'b'"),
        ({"a": weight, "low": weight[0], "high": weight[2]}, "'a', 'high', 'low'"),
    ):
        with pytest.raises(RuntimeError, match=names):
            safering.torch.save_file(tensors, path)
    assert not path.exists()
    halves = {"a": weight[:2], "b": weight[2:], "none": weight[:0], "also none": weight[:0]}
    safering.torch.save_file(halves, path)
    assert all(same(tensor, halves[name]) for name, tensor in safetensors.torch.load_file(path).items())
