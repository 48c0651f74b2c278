"""A length probe: a small network that tells from a job's last hidden state how many tokens are still to come.

As TRAIL's (arXiv 2410.01035): one hidden layer with ReLU, a softmax over equal bins of the tokens that remain. Ours is on the state
that the model's output head reads, which every model has in one place; the paper's is on a middle layer. The file is safetensors, its
metadata name the model's revision and the bins. Knows nothing of jobs or of how it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear

from model.adapter import Model
from packhorse.errors import ConfigError
from transport.messages import MAX_SCORE_BINS

KIND = "packhorse length probe 1"
NAMES = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")


@dataclass(frozen=True)
class LengthProbe:
    """hidden_weight [width, hidden_size], hidden_bias [width], out_weight [bins, width], out_bias [bins]: float32.

    Bins are equal parts of 0 to `span_tokens`; the last also stands for all beyond.
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    span_tokens: int

    @property
    def bins(self) -> int:
        return len(self.out_bias)

    @torch.inference_mode()
    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> float32 [N, bins], probabilities."""
        inner = linear(hidden.float(), self.hidden_weight, self.hidden_bias).relu()
        return linear(inner, self.out_weight, self.out_bias).softmax(-1)

    def save(self, path: Path, revision: str) -> None:
        """`revision` is the model's. Raises ConfigError where the file cannot be written."""
        values = (self.hidden_weight, self.hidden_bias, self.out_weight, self.out_bias)
        tensors = {name: value.contiguous().cpu() for name, value in zip(NAMES, values, strict=True)}
        metadata = {"kind": KIND, "revision": revision, "span_tokens": str(self.span_tokens)}
        try:
            save_file(tensors, path, metadata)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"length probe {path} cannot be written: {error}") from error


def load_length_probe(path: Path, model: Model) -> LengthProbe:
    """The probe in a file, on the model's device. Raises ConfigError that names the file and what does not fit the model."""
    try:
        with safe_open(path, "pt", device=str(model.info.device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise _unfit(path, f"cannot be read: {error}") from error
    if metadata.get("kind") != KIND or tensors.keys() != set(NAMES):
        raise _unfit(path, f"is no {KIND!r}: `packhorse bench probe` writes them")
    if metadata.get("revision") != model.info.revision:
        raise _unfit(
            path,
            f"was trained on model revision {metadata.get('revision')}, not {model.info.name}'s {model.info.revision}",
        )
    return _checked(path, tensors, metadata.get("span_tokens", ""), model.hidden_size)


def _checked(path: Path, tensors: Mapping[str, Tensor], span: str, hidden_size: int) -> LengthProbe:
    width, bins = len(tensors["hidden.bias"]), len(tensors["out.bias"])
    expected = dict(zip(NAMES, ((width, hidden_size), (width,), (bins, width), (bins,)), strict=True))
    for name, shape in expected.items():
        found = tensors[name]
        if found.shape != shape or found.dtype != torch.float32 or not found.isfinite().all():
            raise _unfit(path, f"{name} is {found.dtype} {list(found.shape)}, not finite torch.float32 {list(shape)}")
    if not 2 <= bins <= MAX_SCORE_BINS:
        raise _unfit(path, f"has {bins} bins, not 2 to {MAX_SCORE_BINS}")
    if not span.isdecimal() or int(span) < 1:
        raise _unfit(path, f"has span_tokens={span!r}, not a positive number")
    hidden_weight, hidden_bias, out_weight, out_bias = (tensors[name] for name in NAMES)
    return LengthProbe(hidden_weight, hidden_bias, out_weight, out_bias, int(span))


def _unfit(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"length_probe={path}: {reason}", param="length_probe")
