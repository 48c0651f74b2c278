"""A planned step gives, in every layer, what `decode_attention` gives there, and refuses what that refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hack_kernels import DecodePlan, PageFormat, decode_attention, fused_dequant_attention, plan_decode
from tests.hack_kernels.sequences import Stored, random_kv, random_q, store

pytestmark = pytest.mark.usefixtures("kernels")

LAYERS, LENGTHS, SCALE = 3, [5, 70, 200], 0.125


def make_layers(name: str) -> list[Stored]:
    """The same sequences, tables and rows, with other K and V in each layer."""
    fmt = PageFormat.parse(name, 64, torch.bfloat16)
    return [store(fmt, [random_kv(2, n, 64, seed=100 * layer + n) for n in LENGTHS]) for layer in range(LAYERS)]


def shared(layers: list[Stored]) -> dict[str, Tensor]:
    first = layers[0]
    return {
        "pages": torch.stack([x.pages for x in layers]),
        "page_table": first.page_table,
        "num_pages": first.num_pages,
        "residual": torch.stack([x.residual for x in layers]),
        "residual_rows": first.residual_rows,
        "residual_tokens": first.residual_tokens,
    }


def plan_of(layers: list[Stored], dequant: bool = False, **instead: Tensor) -> DecodePlan:
    return plan_decode(layers[0].fmt, **(shared(layers) | instead), dequant=dequant)


@pytest.mark.parametrize("dequant", [False, True])
@pytest.mark.parametrize("name", ["k2v2", "k4v8"])
def test_every_layer_is_attended_as_by_itself(name: str, dequant: bool) -> None:
    layers, operation = make_layers(name), fused_dequant_attention if dequant else decode_attention
    plan = plan_of(layers, dequant)
    for layer, stored in enumerate(layers):
        q = random_q(3, 4, 64, seed=layer)
        assert torch.equal(plan.attend(layer, q, SCALE), operation(stored.fmt, q, *stored.arguments(), SCALE))


def test_queries_of_another_kind_are_attended_by_the_same_plan() -> None:
    """Other types, head counts, strides, numbers of queries and scales, and then the first again."""
    layers = make_layers("k4v4")
    plan, plain, wide = plan_of(layers), random_q(3, 4, 64), random_q(3, 8, 128)
    strided = (wide[:, ::2, :64], wide[..., ::2], random_q(4, 3, 64).transpose(0, 1))
    for q in (plain, plain.bfloat16(), plain[:, :2], *strided, plain.view(3, 1, 4, 64), plain):
        for scale in (SCALE, 0.5):
            alone = decode_attention(layers[1].fmt, q, *layers[1].arguments(), scale)
            assert torch.equal(plan.attend(1, q, scale), alone)


def test_what_is_written_between_layers_is_seen() -> None:
    layers = make_layers("k4v2")
    tensors, q = shared(layers), random_q(3, 4, 64)
    plan = plan_decode(layers[0].fmt, **tensors)
    before = plan.attend(1, q, SCALE).clone()
    tensors["pages"][1].copy_(layers[2].pages)
    tensors["residual"][1].copy_(layers[2].residual)
    after = plan.attend(1, q, SCALE)
    assert not torch.equal(before, after)
    assert torch.equal(after, decode_attention(layers[2].fmt, q, *layers[2].arguments(), SCALE))


def test_tables_need_not_be_contiguous() -> None:
    layers, q = make_layers("k2v4"), random_q(3, 4, 64)
    apart = {
        name: torch.stack((x, x), dim=-1).select(-1, 0) for name, x in shared(layers).items() if x.dtype == torch.int64
    }
    assert torch.equal(plan_of(layers, **apart).attend(2, q, SCALE), plan_of(layers).attend(2, q, SCALE))


BAD = [
    ("pages", torch.zeros(3, 5, 2, 100, dtype=torch.uint8)),
    ("pages", torch.zeros(5, 2, 64, dtype=torch.uint8)),
    ("residual", torch.zeros(2, 5, 2, 2, 68, 64, dtype=torch.bfloat16)),  # of two layers
    ("residual", torch.zeros(3, 5, 2, 2, 68, 64)),
    ("page_table", torch.full((3, 4), 99)),
    ("page_table", torch.zeros(2, 4, dtype=torch.int64)),
    ("num_pages", torch.tensor([0, 1, 9])),
    ("num_pages", torch.zeros(3)),
    ("residual_rows", torch.tensor([0, 1, 5])),
    ("residual_tokens", torch.tensor([1, 1, 0])),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BAD)])
def test_a_bad_argument_is_named(name: str, value: Tensor) -> None:
    layers = make_layers("k4v2")
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        plan_of(layers, **{name: value}).attend(0, random_q(3, 4, 64), SCALE)


@pytest.mark.parametrize("q", [torch.zeros(2, 4, 64), torch.zeros(3, 3, 64), torch.zeros(3, 4, 64).double()])
def test_bad_queries_are_refused_after_good_ones(q: Tensor) -> None:
    plan, good = plan_of(make_layers("k4v2")), random_q(3, 4, 64)
    first = plan.attend(0, good, SCALE).clone()
    with pytest.raises(ValueError, match=r"^(q|page_table) has"):  # another batch than the table's names either
        plan.attend(0, q, SCALE)
    assert torch.equal(plan.attend(0, good, SCALE), first)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError):
        plan_of(make_layers("k4v2")).attend(LAYERS, random_q(3, 4, 64), SCALE)


def test_a_format_that_is_not_the_pages_is_refused() -> None:
    layers = make_layers("k4v2")
    other = replace(layers[0].fmt, k_bits=2)
    with pytest.raises(ValueError, match=r"^pages\b"):
        plan_decode(other, **shared(layers))
