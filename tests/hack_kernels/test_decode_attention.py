"""Decode attention on codes: against exact attention to the opened pages, against a naive loop, and against its neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hack_kernels import PageFormat, append, decode_attention
from hack_kernels.reference import history
from hack_kernels.reference.codes import unpack_k_codes, unpack_v_codes
from hack_kernels.reference.scales import decode_scale
from tests.hack_kernels.sequences import (
    POISON_SLOT,
    Stored,
    attend_float64,
    error_bound,
    random_kv,
    random_q,
    store,
)

pytestmark = pytest.mark.usefixtures("kernels")

LENGTHS = [1, 4, 5, 67, 68, 69, 132, 133, 400]  # tokens, the newest included: no page, one, a full open block, many
FORMATS = ["raw", "k8v8", "k4v4", "k4v2", "k2v4", "k2v2"]


def make(name: str, lengths: list[int], kv_heads: int = 2, head_dim: int = 64) -> Stored:
    fmt = PageFormat.parse(name, head_dim, torch.float32)
    return store(fmt, [random_kv(kv_heads, n, head_dim, seed=n) for n in lengths])


def check_within_bound(stored: Stored, q: Tensor) -> None:
    scale = q.shape[-1] ** -0.5
    out = decode_attention(stored.fmt, q, *stored.arguments(), scale)
    assert out.dtype == q.dtype
    for i in range(q.shape[0]):
        k, v = stored.opened(i)
        error = (out[i] - attend_float64(q[i], k, v, scale)).abs()
        assert (error <= error_bound(stored.fmt, q[i], stored.owned(i), v, scale)).all(), f"sequence {i}: {error.max()}"


@pytest.mark.parametrize("name", FORMATS)
def test_error_is_within_what_int8_queries_and_weights_imply(name: str) -> None:
    check_within_bound(make(name, LENGTHS), random_q(len(LENGTHS), 4, 64))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(FORMATS),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_dim=st.sampled_from([16, 48, 80, 96, 128, 256]),
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=3),
)
def test_error_is_within_the_bound_for_any_shape(
    name: str, kv_heads: int, group: int, head_dim: int, lengths: list[int]
) -> None:
    check_within_bound(make(name, lengths, kv_heads, head_dim), random_q(len(lengths), kv_heads * group, head_dim))


def attend_naively(stored: Stored, i: int, head: int, q: Tensor, scale: float) -> Tensor:
    """The formulas of hack_kernels/reference/history.py, one page and one number of codes after another. -> [head_dim]"""
    fmt, group = stored.fmt, q.shape[0] // stored.pages.shape[1]
    assert fmt.k_bits is not None
    assert fmt.v_bits is not None
    kv_head, query = head // group, q[head] * scale
    keys, values = stored.residual[stored.residual_rows[i], :, kv_head, : int(stored.residual_tokens[i])]
    scores = keys @ query
    parts = [(scores.max(), (scores - scores.max()).exp().sum(), (scores - scores.max()).exp() @ values)]
    for page in stored.owned(i)[:, kv_head]:
        folded = query * decode_scale(fmt.view(page, "k_scale"))
        a = folded.abs().max() / 127
        q8 = (folded / a).round().long()
        dots = torch.stack(
            [(q8 * codes.long()).sum() for codes in unpack_k_codes(fmt.view(page, "k_codes"), fmt.k_bits)]
        )
        scores = a * dots + query @ fmt.view(page, "k_min").float()
        w = (scores - scores.max()).exp()
        out = torch.empty(fmt.head_dim)
        v_codes = unpack_v_codes(fmt.view(page, "v_codes"), fmt.v_bits).long()
        for channel in range(fmt.head_dim):
            g = channel // fmt.group_channels
            weighted = w * decode_scale(fmt.view(page, "v_scale")[g])
            b = weighted.max() / 127
            w8 = (weighted / b).round().long()
            offsets = fmt.view(page, "v_zero")[g] * 2.0 ** (fmt.v_bits - 5)
            out[channel] = b * (w8 * v_codes[:, channel]).sum() + weighted @ offsets
        parts.append((scores.max(), w.sum(), out))
    shares = (torch.stack([top for top, _, _ in parts]) - max(top for top, _, _ in parts)).exp()
    total = sum(share * weight for share, (_, weight, _) in zip(shares, parts, strict=True))
    return sum(share * out for share, (_, _, out) in zip(shares, parts, strict=True)) / total  # type: ignore[return-value]


@pytest.mark.parametrize("name", FORMATS[1:])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_follows_the_formulas(name: str, head_dim: int) -> None:
    """Equal up to float32, except where sums in another order move a weight across the middle between two integers.

    Such a tie changes one W8 of a page by 1, and an output by at most b * code <= max v_scale / 127 * (2**bits - 1).
    """
    stored, scale = make(name, [69, 200], head_dim=head_dim), head_dim**-0.5
    fmt, q = stored.fmt, random_q(2, 4, head_dim)
    out = decode_attention(fmt, q, *stored.arguments(), scale)
    tied = 0
    for i in range(2):
        flip = decode_scale(fmt.view(stored.owned(i), "v_scale")).max() / 127 * (2 ** (fmt.v_bits or 0) - 1)
        for head in range(4):
            error = (out[i, head] - attend_naively(stored, i, head, q[i], scale)).abs().max()
            assert error < 1e-5 + flip
            tied += bool(error > 1e-5)
    assert tied <= 1


@pytest.mark.parametrize("head_dim", [16, 64, 80])
def test_raw_pages_equal_torch_attention(head_dim: int) -> None:
    sequences = [random_kv(2, n, head_dim, seed=n) for n in LENGTHS]
    stored = store(PageFormat.parse("raw", head_dim, torch.float32), sequences)
    q = random_q(len(LENGTHS), 6, head_dim)
    out = decode_attention(stored.fmt, q, *stored.arguments(), 0.2)
    for i, (k, v) in enumerate(sequences):
        k, v = (x.repeat_interleave(3, 0) for x in (k, v))
        expected = torch.nn.functional.scaled_dot_product_attention(q[i].unsqueeze(1), k, v, scale=0.2).squeeze(1)
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["raw", "k4v2"])
def test_16_bit_models(name: str, dtype: torch.dtype) -> None:
    """As in float32, and one rounding of the output: 2**-9 relative for bf16 (8 significant bits), less for fp16."""
    stored = store(PageFormat.parse(name, 64, dtype), [random_kv(2, n, 64, n, dtype) for n in (3, 150)])
    q = random_q(2, 4, 64).to(dtype)
    out = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    assert out.dtype == dtype
    full = decode_attention(stored.fmt, q.float(), *stored.arguments(), 0.125)
    torch.testing.assert_close(out.float(), full, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_a_sequence_does_not_notice_its_batch(name: str) -> None:
    stored, q = make(name, LENGTHS), random_q(len(LENGTHS), 4, 64)
    together = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    for i in range(len(LENGTHS)):
        one = slice(i, i + 1)
        alone = decode_attention(
            stored.fmt,
            q[one],
            stored.pages,
            stored.page_table[one],
            stored.num_pages[one],
            stored.residual,
            stored.residual_rows[one],
            stored.residual_tokens[one],
            0.125,
        )
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["raw", "k4v4"])
def test_the_order_of_pages_does_not_matter(name: str) -> None:
    stored, q = make(name, [400]), random_q(1, 4, 64)
    forwards = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    count = int(stored.num_pages[0])
    stored.page_table[0, :count] = stored.page_table[0, :count].flip(0)
    backwards = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    torch.testing.assert_close(forwards, backwards, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["raw", "k2v2"])
def test_slices_of_pages_do_not_change_the_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, q = make(name, LENGTHS), random_q(len(LENGTHS), 4, 64)
    whole = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    monkeypatch.setattr(history, "MAX_TEMPORARY_BYTES", 1)  # one page at a time
    sliced = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    torch.testing.assert_close(sliced, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_sequence_does_not_own_never_leaks(name: str) -> None:
    stored, q = make(name, [1, 70, 150]), random_q(3, 4, 64)
    first = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    assert first.isfinite().all()  # unowned slots, rows and residual slots hold NaN
    foreign = torch.ones(stored.pages.shape[0], dtype=torch.bool)
    foreign[stored.page_table[2, : int(stored.num_pages[2])]] = False
    stored.pages[foreign] = 0xFF  # the other sequences' pages too
    stored.residual[stored.residual_rows[:2]] = torch.nan
    second = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    assert torch.equal(second[2], first[2])
    assert second[0].isnan().all()


def test_the_page_table_is_not_read_beyond_num_pages() -> None:
    stored, q = make("k4v4", [3, 150]), random_q(2, 4, 64)
    assert POISON_SLOT in stored.page_table[0]
    before = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    for i, count in enumerate(stored.num_pages.tolist()):
        stored.page_table[i, count:] = -7
    assert torch.equal(decode_attention(stored.fmt, q, *stored.arguments(), 0.125), before)


def test_a_page_of_nan_makes_its_sequence_nan_and_no_other() -> None:
    stored, q = make("k4v4", [150, 150]), random_q(2, 4, 64)
    stored.fmt.view(stored.pages, "k_min")[stored.page_table[1, 0]] = torch.nan
    out = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_one_token_attends_to_itself() -> None:
    kv = random_kv(2, 1, 64)
    stored = store(PageFormat.parse("k2v2", 64, torch.float32), [kv])
    out = decode_attention(stored.fmt, random_q(1, 4, 64), *stored.arguments(), 0.125)
    torch.testing.assert_close(out[0], kv[1, :, 0].repeat_interleave(2, 0))


def test_no_pages_in_the_pool_at_all() -> None:
    stored, q = make("k2v2", [60]), random_q(1, 4, 64)
    expected = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
    stored.pages, stored.page_table = stored.pages[:0], stored.page_table[:, :0]
    assert torch.equal(decode_attention(stored.fmt, q, *stored.arguments(), 0.125), expected)


def test_an_empty_batch() -> None:
    stored = make("k2v2", [60])
    none = torch.zeros(0, dtype=torch.int64)
    out = decode_attention(
        stored.fmt, torch.zeros(0, 4, 64), stored.pages, torch.zeros(0, 3, dtype=torch.int64), none,
        stored.residual, none, none, 0.125,
    )  # fmt: skip
    assert out.shape == (0, 4, 64)


def test_scores_far_apart_do_not_overflow() -> None:
    kv = random_kv(1, 300, 64)
    kv[0, :, 100] *= 1e4
    stored = store(PageFormat.parse("k8v8", 64, torch.float32), [kv])
    out = decode_attention(stored.fmt, random_q(1, 2, 64) * 100, *stored.arguments(), 1.0)
    assert out.isfinite().all()


def test_a_full_block_is_exact_in_the_step_that_fills_it() -> None:
    """At token 68 the open block is full: attention sees it exactly all the same, and the next step sees its codes."""
    fmt, kv, q = PageFormat.parse("k2v2", 64, torch.float32), random_kv(2, 69, 64), random_q(1, 4, 64)
    pages = torch.full((2, 2, fmt.page_bytes), 0xFF, dtype=torch.uint8)
    residual = torch.full((1, 2, 2, fmt.residual_slots, 64), torch.nan)
    row, slot, table = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), torch.ones(1, 1).long()
    exact_error = {}
    for n in range(69):  # n tokens before the new one
        count = torch.tensor([n])
        append(fmt, kv[0, :, n].unsqueeze(0), kv[1, :, n].unsqueeze(0), pages, residual, row, count, slot)
        held = torch.tensor([fmt.num_pages(n)]), torch.tensor([fmt.residual_tokens(n) + 1])
        out = decode_attention(fmt, q, pages, table, held[0], residual, row, held[1], 0.125)
        exact = attend_float64(q[0], kv[0, :, : n + 1].double(), kv[1, :, : n + 1].double(), 0.125)
        exact_error[n + 1] = float((out[0] - exact).abs().max())
    assert max(exact_error[n] for n in range(1, 69)) < 1e-5
    assert exact_error[69] > 1e-2  # the codes of two bits
