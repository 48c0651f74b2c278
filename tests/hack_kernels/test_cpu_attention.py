"""What the native attention adds to the tests that it shares with the reference: instruction sets, threads, memory, and the yardstick."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hack_kernels import PageFormat, decode_attention, fused_dequant_attention, prefill_attention
from hack_kernels.cpu import library
from hack_kernels.page_format import BITS
from hack_kernels.reference import decode_attention as reference
from hack_kernels.reference import fused_dequant as reference_dequant
from tests.hack_kernels.sequences import Stored, attend_float64, error_bound, random_kv, random_q, store

NAMES = ["raw", *(f"k{k_bits}v{v_bits}" for k_bits in BITS for v_bits in BITS)]
HEAD_DIMS = [16, 48, 64, 80, 96, 128, 160, 192, 256]


def make(name: str, lengths: list[int], kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32) -> Stored:
    fmt = PageFormat.parse(name, head_dim, dtype)
    return store(fmt, [random_kv(kv_heads, n, head_dim, seed=n) for n in lengths])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_error_is_within_the_bound_for_every_format(isa: str, name: str, head_dim: int) -> None:
    """Groups of 1 to 7 query heads: whole slices of four rows, and what is left over. The bound is error_bound's."""
    for group in (1, 3, 4, 6):
        stored, q = make(name, [5, 200], 1, head_dim), random_q(2, group, head_dim)
        out = decode_attention(stored.fmt, q, *stored.arguments(), head_dim**-0.5)
        for i in range(2):
            k, v = stored.opened(i)
            error = (out[i] - attend_float64(q[i], k, v, head_dim**-0.5)).abs()
            assert (error <= error_bound(stored.fmt, q[i], stored.owned(i), v, head_dim**-0.5)).all()


def dequant_bound(stored: Stored, q: Tensor, i: int, scale: float) -> Tensor:
    """How far dequantizing in bf16 may be from float64, [heads, head_dim]; see error_bound for the two steps.

    Folded queries and weights are rounded to bf16, 2**-9 of themselves, so a score is off by at most e = 2**-9 * the largest
    sum of |q~| * (code + 384) and an output by the values' range * tanh(e / 2) + 2**-9 * the sum of w~ * (code + 384) over the sum
    of w: expanded codes carry an offset of up to 384 (8 bits), 128 (less), which is subtracted in float32 with the same rounded
    operands, so it adds no error but float32's own, 2**-22 of it.
    """
    k, v = stored.opened(i)
    group = q.shape[0] // k.shape[0]
    keys, values = (x.repeat_interleave(group, 0) for x in (k, v))
    fmt = stored.fmt
    assert fmt.k_bits is not None
    span = (keys.amax(1) - keys.amin(1)) * 1.2 + 1e-3  # of the codes of a channel, with what a scale's rounding adds
    e = (2.0**-9 + 384 / 2 * 2.0**-22) * ((q.double() * scale).abs() * span).sum(-1) * 1.1
    spread = values.amax(1) - values.amin(1)
    return spread * torch.tanh(e / 2).unsqueeze(-1) + 2.0**-8 * spread.amax(-1, keepdim=True) * 2 + 1e-4


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_fused_dequantization_attends_to_what_pages_stand_for(isa: str, name: str, head_dim: int) -> None:
    stored, q, scale = make(name, [5, 200, 400], 2, head_dim), random_q(3, 6, head_dim), head_dim**-0.5
    out = fused_dequant_attention(stored.fmt, q, *stored.arguments(), scale)
    exact = reference_dequant.fused_dequant_attention(stored.fmt, q, *stored.arguments(), scale)
    if isa != "avx512bf16":
        torch.testing.assert_close(out, exact, atol=2e-5, rtol=2e-5)
    for i in range(3):
        k, v = stored.opened(i)
        error = (out[i] - attend_float64(q[i], k, v, scale)).abs()
        assert (error <= dequant_bound(stored, q[i], i, scale)).all()


@pytest.mark.parametrize("name", ["raw", "k2v2", "k4v8"])
@pytest.mark.parametrize("queries", [1, 2, 5, 8])
def test_several_queries_see_what_they_would_one_by_one(kernels: str, name: str, queries: int) -> None:
    stored = make(name, [40, 133, 200], 2, 64)
    stored.residual_tokens = stored.residual_tokens.clamp(min=queries)
    stored.residual.nan_to_num_(nan=0.5)  # of the slots that the clamp added
    q = torch.stack([random_q(3, 8, 64, seed) for seed in range(queries)], 1)
    out = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    assert out.shape == q.shape
    last = stored.residual_tokens
    for i in range(queries):
        stored.residual_tokens = last - (queries - 1 - i)
        alone = decode_attention(stored.fmt, q[:, i].contiguous(), *stored.arguments(), 0.125)
        torch.testing.assert_close(out[:, i], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("queries", [0, 9])
def test_too_many_queries_are_refused(queries: int) -> None:
    stored = make("k2v2", [40], 2, 64)
    with pytest.raises(ValueError, match=rf"^q has {queries} queries"):
        decode_attention(stored.fmt, torch.zeros(1, queries, 4, 64), *stored.arguments(), 0.125)


def test_a_residual_shorter_than_its_queries_is_refused() -> None:
    stored = make("k2v2", [3], 2, 64)
    with pytest.raises(ValueError, match=r"^residual_tokens holds 3"):
        decode_attention(stored.fmt, torch.zeros(1, 4, 4, 64), *stored.arguments(), 0.125)


@pytest.mark.parametrize("name", ["raw", "k4v2"])
def test_neither_threads_nor_the_batch_change_a_bit(isa: str, name: str) -> None:
    stored, q = make(name, [9000, 1, 150, 2200], 2, 32), random_q(4, 10, 32)
    torch.set_num_threads(1)
    single = decode_attention(stored.fmt, q, *stored.arguments(), 0.2)
    torch.set_num_threads(2)
    assert torch.equal(decode_attention(stored.fmt, q, *stored.arguments(), 0.2), single)
    for i in range(4):
        pages, table, counts, residual, rows, tokens = stored.arguments()
        one = slice(i, i + 1)
        alone = decode_attention(
            stored.fmt, q[one], pages, table[one], counts[one], residual, rows[one], tokens[one], 0.2
        )
        assert torch.equal(alone[0], single[i])


@pytest.mark.parametrize("operation", [decode_attention, fused_dequant_attention])
@pytest.mark.parametrize("name", ["raw", "k2v2"])
def test_every_element_is_written_whatever_was_there(isa: str, name: str, operation: object) -> None:
    stored, q = make(name, [1, 70, 300], 2, 80), random_q(3, 6, 80)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    try:
        out = operation(stored.fmt, q, *stored.arguments(), 0.125)  # type: ignore[operator]
        chunk = prefill_attention(
            stored.fmt, q[0].expand(7, -1, -1), *random_kv(2, 9, 80), 0.125, stored.pages, stored.page_table[2, :3]
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert out.isfinite().all()
    assert chunk.isfinite().all()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(NAMES),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 16),
    head_dim=st.sampled_from([16, 48, 80, 96, 112, 128, 144, 256]),
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    q_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_equals_the_reference_up_to_ties(
    isa: str, name: str, kv_heads: int, group: int, head_dim: int, lengths: list[int], dtype: torch.dtype, q_dtype: torch.dtype
) -> None:  # fmt: skip
    """Both are within error_bound of exact attention, so they are within twice of it of each other, and of a rounding to q's dtype."""
    stored, scale = make(name, lengths, kv_heads, head_dim, dtype), head_dim**-0.5
    q = random_q(len(lengths), kv_heads * group, head_dim).to(q_dtype)
    out = decode_attention(stored.fmt, q, *stored.arguments(), scale)
    expected = reference.decode_attention(stored.fmt, q, *stored.arguments(), scale)
    assert out.dtype == q_dtype
    for i in range(len(lengths)):
        _, v = stored.opened(i)
        bound = 2 * error_bound(stored.fmt, q[i].float(), stored.owned(i), v, scale)
        rounding = 0 if q_dtype == torch.float32 else 2.0**-7 * v.abs().max()
        assert ((out[i] - expected[i]).abs() <= bound + rounding).all()


def test_strided_arguments(isa: str) -> None:
    stored, q = make("k4v2", [70, 300], 2, 64), random_q(2, 4, 64)
    expected = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    spread = [torch.stack((x, torch.zeros_like(x)), -1)[..., 0] for x in (q, *stored.arguments())]
    assert torch.equal(decode_attention(stored.fmt, spread[0], *spread[1:], 0.125), expected)
    heads_first = q.transpose(0, 1).contiguous().transpose(0, 1)
    wider = torch.full((stored.pages.shape[0], 2, stored.fmt.page_bytes + 48), 0xFF, dtype=torch.uint8)
    wider[..., 5 : 5 + stored.fmt.page_bytes] = stored.pages  # odd addresses
    pages = wider[..., 5 : 5 + stored.fmt.page_bytes]
    assert torch.equal(decode_attention(stored.fmt, heads_first, pages, *stored.arguments()[1:], 0.125), expected)


def test_formats_without_a_kernel_are_refused_by_name(isa: str) -> None:
    for fmt, named in (
        (PageFormat(64, torch.float32, 2, 2, page_tokens=32), "page_tokens=64, not 32"),
        (PageFormat(8, torch.float32, 4, 4), "head_dim 16 to 512, not 8"),
    ):
        with pytest.raises(ValueError, match=f"^fmt: .*{named}"):
            library.format_struct(fmt)


def test_rows_of_all_that_is_supported(isa: str) -> None:
    """16 query heads of a KV head times 8 queries, the most there is."""
    stored = make("k2v2", [200], 1, 16)
    q = torch.stack([random_q(1, 16, 16, seed) for seed in range(8)], 1)
    out = decode_attention(stored.fmt, q, *stored.arguments(), 0.25)
    expected = reference.decode_attention(stored.fmt, q, *stored.arguments(), 0.25)
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0)
    with pytest.raises(ValueError, match=r"^q has 136 queries per KV head"):
        decode_attention(stored.fmt, torch.zeros(1, 8, 17, 16), *stored.arguments(), 0.25)


def test_what_passed_once_is_not_a_licence_for_others(isa: str) -> None:
    """Shapes and types that have passed are remembered; strides, values and other types are not taken for them."""
    stored, q = make("k2v2", [70, 300], 2, 64), random_q(2, 4, 64)
    arguments = stored.arguments()
    expected = decode_attention(stored.fmt, q, *arguments, 0.125)
    apart = torch.stack((q, torch.zeros_like(q)), -1)[..., 0]
    assert torch.equal(decode_attention(stored.fmt, apart, *arguments, 0.125), expected)
    assert not torch.equal(decode_attention(stored.fmt, q, *arguments, 0.25), expected)
    other = stored.residual.double()
    with pytest.raises(ValueError, match=r"^residual has dtype torch.float64"):
        decode_attention(stored.fmt, q, *arguments[:3], other, *arguments[4:], 0.125)
    with pytest.raises(ValueError, match=r"^num_pages holds 99"):
        decode_attention(stored.fmt, q, *arguments[:2], torch.tensor([99, 0]), *arguments[3:], 0.125)
    with pytest.raises(ValueError, match=r"^residual_rows is a list"):
        decode_attention(stored.fmt, q, *arguments[:4], [0, 1], arguments[5], 0.125)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["raw", "k2v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neither_threads_nor_strides_change_a_chunk_over_history(isa: str, name: str, dtype: torch.dtype) -> None:
    """17 queries of 3 heads are rows of two tasks, the second not full; 70 exact tokens are two runs of them."""
    stored, q = make(name, [300], 2, 80), random_q(17, 6, 80).to(dtype)
    k, v = random_kv(2, 70, 80, seed=9, dtype=dtype)
    arguments = (0.125, stored.pages, stored.page_table[0, :3])
    expected = prefill_attention(stored.fmt, q, k, v, *arguments)
    torch.set_num_threads(2)
    wide, heads_first = torch.cat((k, k), 1)[:, :70], q.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(prefill_attention(stored.fmt, heads_first, wide, v, *arguments), expected)
    reversed_v = v.flip(1).contiguous().flip(1).transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(prefill_attention(stored.fmt, q, k, reversed_v, *arguments), expected)
    alone = [prefill_attention(stored.fmt, q[i : i + 1], k[:, : 54 + i], v[:, : 54 + i], *arguments) for i in range(17)]
    torch.testing.assert_close(torch.cat(alone), expected, atol=1e-5, rtol=2.0**-7 if dtype != torch.float32 else 1e-5)


def test_integer_dots_are_counted(isa: str) -> None:
    one = library.integer_dots(1)
    assert one > 0
    assert library.integer_dots(1000) == 1000 * one
    torch.set_num_threads(2)
    assert library.integer_dots(1) == 2 * one
