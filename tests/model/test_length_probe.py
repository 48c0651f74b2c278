"""A length probe's file, checked against its model; and the hidden states that it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.length_probe import KIND, NAMES, LengthProbe, load_length_probe
from model.loader import load_model
from packhorse.errors import ConfigError
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.model.test_forward import ExactAttend

MODEL = load_model("embedded")
SIZE = MODEL.hidden_size


def tensors(hidden_size: int = SIZE, width: int = 4, bins: int = 10) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = ((width, hidden_size), (width,), (bins, width), (bins,))
    return {name: torch.randn(shape, generator=draw) for name, shape in zip(NAMES, shapes, strict=True)}


METADATA = {"kind": KIND, "revision": MODEL.info.revision, "span_tokens": "256"}


def test_a_saved_probe_is_the_same_when_loaded(tmp_path: Path) -> None:
    probe = LengthProbe(*tensors().values(), span_tokens=300)
    probe.save(tmp_path / "probe.safetensors", MODEL.info.revision)
    again = load_length_probe(tmp_path / "probe.safetensors", MODEL)
    hidden = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(2))
    assert (again.span_tokens, again.bins) == (300, 10)
    assert torch.equal(again(hidden), probe(hidden))
    assert torch.allclose(probe(hidden).sum(-1), torch.ones(5))


@pytest.mark.parametrize(
    ("values", "metadata", "told"),
    [
        (tensors(), METADATA | {"kind": "other"}, "is no 'packhorse length probe 1'"),
        ({"weight": torch.zeros(1)}, METADATA, "is no 'packhorse length probe 1'"),
        (tensors(), METADATA | {"revision": "0"}, "was trained on model revision 0, not embedded's"),
        (tensors(hidden_size=SIZE + 1), METADATA, rf"hidden.weight is torch.float32 \[4, {SIZE + 1}\], not .* \[4, {SIZE}\]"),
        (tensors() | {"out.bias": torch.zeros(9)}, METADATA, r"out.weight is .* \[10, 4\], not .* \[9, 4\]"),
        (tensors() | {"hidden.bias": torch.full((4,), torch.nan)}, METADATA, "hidden.bias is .* not finite"),
        (tensors() | {"hidden.bias": torch.zeros(4).half()}, METADATA, "hidden.bias is torch.float16"),
        (tensors(bins=65), METADATA, "has 65 bins, not 2 to 64"),
        (tensors(), METADATA | {"span_tokens": "-5"}, "has span_tokens='-5', not a positive number"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_named(
    values: dict[str, torch.Tensor], metadata: dict[str, str], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "probe.safetensors"
    save_file(values, path, metadata)
    with pytest.raises(ConfigError, match=told) as caught:
        load_length_probe(path, MODEL)
    assert f"length_probe={path}" in str(caught.value)


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_length_probe(path, MODEL)


def test_a_probe_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        LengthProbe(*tensors().values(), span_tokens=300).save(tmp_path / "no" / "probe", "0")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_are_those_that_the_logits_are_made_of(family: str, tmp_path: Path) -> None:
    model = load_model(str(make_checkpoint(family, tmp_path)))
    tokens, positions, at = torch.arange(5, 12), torch.arange(7), torch.tensor([2, 6])
    attends = [ExactAttend(), ExactAttend()]
    for attend in attends:
        attend.lengths = [7]
    logits, hidden = model.forward_hidden(tokens, positions, attends[0], at)
    assert torch.equal(logits, model.forward(tokens, positions, attends[1], at))
    assert hidden.shape == (2, model.hidden_size)
    head = vars(model)["_module"].get_output_embeddings()
    assert torch.equal(head(hidden).float(), logits)
    assert not head._forward_pre_hooks
