"""Prefill attention: exact over its own tokens, on codes over cached pages, and equal to decode where both apply."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hack_kernels import PageFormat, decode_attention, open_pages, prefill_attention
from hack_kernels.reference import history
from hack_kernels.reference import prefill_attention as reference
from tests.hack_kernels.sequences import attend_float64, error_bound, random_kv, random_q, store

pytestmark = pytest.mark.usefixtures("kernels")

RAW = PageFormat.parse("raw", 64, torch.float32)


def expected_rows(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    first = k.shape[1] - q.shape[0] + 1
    rows = [attend_float64(q[i], k[:, : first + i].double(), v[:, : first + i].double(), scale) for i in range(len(q))]
    return torch.stack(rows)


@pytest.mark.parametrize(("chunk", "tokens"), [(1, 1), (1, 70), (5, 5), (33, 33), (33, 100), (100, 101)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (5, 1)])
def test_exact_attention_is_causal_from_the_last_token(chunk: int, tokens: int, heads: int, kv_heads: int) -> None:
    k, v = random_kv(kv_heads, tokens, 64)
    q = random_q(chunk, heads, 64)
    out = prefill_attention(RAW, q, k, v, 0.125)
    torch.testing.assert_close(out.double(), expected_rows(q, k, v, 0.125), atol=1e-5, rtol=1e-5)


def test_chunks_equal_the_whole() -> None:
    k, v = random_kv(2, 150, 64)
    q = random_q(150, 4, 64)
    whole = prefill_attention(RAW, q, k, v, 0.125)
    parts = [
        prefill_attention(RAW, q[a:b], k[:, :b], v[:, :b], 0.125) for a, b in ((0, 64), (64, 65), (65, 149), (149, 150))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)


def test_later_keys_are_not_seen() -> None:
    k, v = random_kv(2, 40, 64)
    q = random_q(20, 4, 64)
    out = prefill_attention(RAW, q, k, v, 0.125)
    k[:, 30:] += 100
    v[:, 30:] += 100
    changed = prefill_attention(RAW, q, k, v, 0.125)
    torch.testing.assert_close(changed[:10], out[:10], atol=1e-6, rtol=0)
    assert not torch.allclose(changed[10:], out[10:], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models(dtype: torch.dtype) -> None:
    """Torch keeps at least one 16-bit rounding of the weights and one of the output: 2 * 2**-9 of the largest value."""
    k, v = random_kv(2, 100, 64, dtype=dtype)
    q = random_q(30, 4, 64).to(dtype)
    out = prefill_attention(PageFormat.parse("raw", 64, dtype), q, k, v, 0.125)
    assert out.dtype == dtype
    error = (out.double() - expected_rows(q, k, v, 0.125)).abs().max()
    assert error < 2**-8 * v.abs().max()


@pytest.mark.parametrize("name", ["raw", "k8v8", "k4v2", "k2v2"])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_history_is_within_the_bound_of_int8(name: str, head_dim: int) -> None:
    fmt = PageFormat.parse(name, head_dim, torch.float32)
    stored = store(fmt, [random_kv(2, 4 + 64 * 3 + 1, head_dim)])
    k, v = random_kv(2, 60, head_dim, seed=9)  # sinks and the prompt's own tokens
    q = random_q(20, 6, head_dim)
    out = prefill_attention(fmt, q, k, v, 0.125, stored.pages, stored.page_table[0, :3])
    opened = [x.transpose(0, 1).flatten(1, 2) for x in open_pages(fmt, stored.owned(0))]
    all_k, all_v = torch.cat((opened[0], k), 1), torch.cat((opened[1], v), 1)
    expected = expected_rows(q, all_k, all_v, 0.125)
    for i in range(20):
        bound = error_bound(fmt, q[i], stored.owned(0), all_v.double(), 0.125)
        assert ((out[i] - expected[i]).abs() <= bound).all()


@pytest.mark.parametrize("name", ["raw", "k4v4", "k2v2"])
def test_history_is_attended_as_decode_attends_it(name: str) -> None:
    fmt = PageFormat.parse(name, 64, torch.float32)
    stored = store(fmt, [random_kv(2, 210, 64)])
    q = random_q(1, 4, 64)
    row, count = int(stored.residual_rows[0]), int(stored.residual_tokens[0])
    k, v = stored.residual[row, :, :, :count]
    by_decode = decode_attention(fmt, q, *stored.arguments(), 0.125)
    by_prefill = prefill_attention(fmt, q, k, v, 0.125, stored.pages, stored.page_table[0, : int(stored.num_pages[0])])
    torch.testing.assert_close(by_prefill, by_decode, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["raw", "k2v4"])
def test_slices_do_not_change_the_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = PageFormat.parse(name, 64, torch.float32)
    stored = store(fmt, [random_kv(2, 210, 64)])
    k, v = random_kv(2, 40, 64, seed=9)
    arguments = (fmt, random_q(33, 4, 64), k, v, 0.125, stored.pages, stored.page_table[0, :3])
    whole = prefill_attention(*arguments)
    monkeypatch.setattr(history, "MAX_TEMPORARY_BYTES", 1)
    monkeypatch.setattr(reference, "MAX_TEMPORARY_BYTES", 40 * 4 * 4 * 10)  # ten queries at a time
    torch.testing.assert_close(prefill_attention(*arguments), whole, atol=1e-6, rtol=0)


def test_an_empty_history_is_no_history() -> None:
    fmt = PageFormat.parse("k2v2", 64, torch.float32)
    k, v = random_kv(2, 40, 64)
    q, pages = random_q(40, 4, 64), torch.zeros(1, 2, fmt.page_bytes, dtype=torch.uint8)
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(prefill_attention(fmt, q, k, v, 0.125, pages, none), prefill_attention(fmt, q, k, v, 0.125))


def test_pages_that_are_not_listed_do_not_leak() -> None:
    fmt = PageFormat.parse("k4v4", 64, torch.float32)
    stored = store(fmt, [random_kv(2, 210, 64)])  # slot 0 is NaN
    k, v = random_kv(2, 40, 64)
    assert (
        prefill_attention(fmt, random_q(40, 4, 64), k, v, 0.125, stored.pages, stored.page_table[0, :3])
        .isfinite()
        .all()
    )
