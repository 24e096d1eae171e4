"""save_model and load_model: tied weights once, and files that safetensors' own functions read and write."""

from __future__ import annotations

import pytest
import safetensors
import safetensors.torch
import torch
from states import bits, numbers

import safering.torch as st

OURS, THEIRS = (st.save_model, st.load_model), (safetensors.torch.save_model, safetensors.torch.load_model)


class Tied(torch.nn.Module):
    """An embedding whose weights are the head's too; the fill tells two models apart."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("steps", torch.tensor(int(fill)))
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                parameter.copy_(numbers(*parameter.shape, start=fill + index))


def state_bits(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("load", [one[1] for one in (OURS, THEIRS)], ids=["loaded", "loaded_by_safetensors"])
@pytest.mark.parametrize("save", [one[0] for one in (OURS, THEIRS)], ids=["saved", "saved_by_safetensors"])
def test_tied_weights_are_saved_once(tmp_path, save, load):
    file = tmp_path / "m.safetensors"
    save(Tied(3.0), str(file), {"by": "test"})
    with safetensors.safe_open(file, "pt") as opened:
        assert opened.metadata() == {"by": "test", "head.weight": "embedding.weight"}
        assert "head.weight" not in opened.keys()
    model = Tied(90.0)
    missing, unexpected = load(model, str(file))
    assert not missing and not unexpected
    assert state_bits(model) == state_bits(Tied(3.0))
    assert model.head.weight is model.embedding.weight


def test_the_name_that_was_saved_counts(tmp_path):
    file = tmp_path / "m.safetensors"
    state = Tied(3.0).state_dict()
    del state["embedding.weight"]
    st.save_file(state, file)
    model = Tied(90.0)
    assert st.load_model(model, file) == ([], [])
    assert state_bits(model) == state_bits(Tied(3.0))


def test_strict(tmp_path):
    file = tmp_path / "m.safetensors"
    state = {name: tensor.clone() for name, tensor in Tied(3.0).state_dict().items()}
    del state["norm.bias"]
    st.save_file(state | {"other": numbers(2)}, file)
    with pytest.raises(RuntimeError, match=r"(?s)Tied.*Missing.*'norm.bias'.*Unexpected.*'head.weight', 'other'"):
        st.load_model(Tied(0.0), file)
    model, theirs = Tied(0.0), Tied(0.0)
    missing, unexpected = st.load_model(model, file, strict=False)
    expected = safetensors.torch.load_model(theirs, file, strict=False)
    assert (set(missing), sorted(unexpected)) == (set(expected[0]), sorted(expected[1]))
    assert state_bits(model) == state_bits(theirs)


def test_strides_and_metadata(tmp_path):
    file = tmp_path / "m.safetensors"
    model = torch.nn.Linear(3, 5)
    model.weight = torch.nn.Parameter(numbers(3, 5).t())
    given = {"weight": "mine"}
    st.save_model(model, file, given, force_contiguous=False)
    assert given == {"weight": "mine"}
    loaded = torch.nn.Linear(3, 5)
    assert st.load_model(loaded, file, device="cpu", backend="threads") == ([], [])
    assert torch.equal(loaded.weight, model.weight)


def test_parts_of_one_storage(tmp_path):
    storage = numbers(12)
    model = torch.nn.Module()
    model.register_buffer("upper", storage[:6])
    model.register_buffer("lower", storage[6:])  # beside it, not shared
    st.save_model(model, tmp_path / "m.safetensors")
    assert st.load_file(tmp_path / "m.safetensors").keys() == {"upper", "lower"}
    model.register_buffer("both", storage[4:8])
    with pytest.raises(RuntimeError, match=r"\['both', 'lower', 'upper'\].*none holds all"):
        st.save_model(model, tmp_path / "m.safetensors")
    model.register_buffer("all", storage)
    st.save_model(model, tmp_path / "m.safetensors")
    assert st.load_file(tmp_path / "m.safetensors").keys() == {"all"}
    assert st.load_model(model, tmp_path / "m.safetensors") == ([], [])
