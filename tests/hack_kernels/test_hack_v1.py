"""HACK's first layout: the product on codes is the product of what the codes stand for, and its errors are quantization's."""

from __future__ import annotations

import pytest
import torch

from hack_kernels.reference.hack_v1 import PARTITION, QUERY_BITS, attend, multiply, partition, quantize
from tests.hack_kernels.sequences import attend_float64, random_kv, random_q


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("length", "size"), [(64, 64), (192, 64), (80, 40)])
def test_the_product_on_codes_equals_dequantizing_first(bits: int, length: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = partition(torch.randn(2, 7, length, generator=generator) + 1, QUERY_BITS, size)
    b = partition(torch.randn(2, 11, length, generator=generator) - 2, bits, size, torch.float16)
    expected = a.dequantize().double() @ b.dequantize().double().mT
    torch.testing.assert_close(multiply(a, b).double(), expected, rtol=1e-5, atol=1e-5 * length)


@pytest.mark.parametrize("tokens", [5, 64, 200])
@pytest.mark.parametrize("bits", [2, 8])
def test_attention_equals_dequantizing_first_but_for_8_bit_operands(tokens: int, bits: int) -> None:
    """Q and P in 8 bits move the result; at 8 bits a query is off by at most range / 255 / 2 per channel.

    Scores are off by at most e = range(q) / 510 * the largest sum of |k| of a token, the output by range(v) * tanh(e / 2) (see
    error_bound in sequences.py); each weight by at most range(p) / 510 of its partition, so by 1 / 510 * sum of |v|.
    """
    (k, v), q, scale = random_kv(2, tokens, 64), random_q(1, 4, 64), 0.125
    cache = quantize(k, v, bits)
    k_hat = cache.k.dequantize().double()
    v_hat = torch.cat((cache.v.dequantize().mT, cache.v_tail), 1).double()
    error = (attend(cache, q, scale)[0] - attend_float64(q[0], k_hat, v_hat, scale)).abs()
    e = (q[0].amax(-1) - q[0].amin(-1)) * scale / 510 * k_hat.abs().sum(-1).amax(-1).repeat_interleave(2)
    per_score = (v_hat.amax(1) - v_hat.amin(1)).repeat_interleave(2, 0) * torch.tanh(e / 2).unsqueeze(-1)
    per_weight = v_hat.abs().sum(1).repeat_interleave(2, 0) / 510
    assert (error <= per_score + per_weight + 1e-5).all()


def test_later_tokens_are_not_seen() -> None:
    """The last token lies in V's exact tail and K's partitions are a token's own, so no other token's codes depend on it."""
    (k, v), q = random_kv(2, 70, 64), random_q(3, 4, 64)
    before = attend(quantize(k, v), q, 0.125)
    k[:, 69] += 10
    v[:, 69] += 100
    after = attend(quantize(k, v), q, 0.125)
    assert torch.equal(after[:2], before[:2])
    assert (after[2] - before[2]).abs().max() > 1
    torch.testing.assert_close(attend(quantize(k, v), q[2:], 0.125), after[2:], atol=1e-5, rtol=1e-5)


def test_layout() -> None:
    k, v = random_kv(2, 150, 128)
    cache = quantize(k, v)
    assert cache.k.codes.shape == (2, 150, 2, 64)  # per token, along head_dim
    assert cache.v.codes.shape == (2, 128, 2, PARTITION)  # per channel, along the tokens
    assert torch.equal(cache.v_tail, v[:, 128:])
    assert cache.k.scale.dtype == torch.float16
    assert torch.equal(cache.k.sums, cache.k.codes.sum(-1))
    assert int(cache.k.codes.max()) == 3


def test_stochastic_rounding_is_unbiased_and_repeatable() -> None:
    x = torch.tensor([0.0, 0.9, 3.0]).repeat(1, 4000, 1)
    first, second = (partition(x, 2, 3, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    # 4000 draws of a code that is 1 with probability 0.9 have a standard deviation of 0.3 / sqrt(4000) = 0.0047; five of them
    assert abs(float(first.dequantize()[0, :, 1].mean()) - 0.9) < 5 * 0.0047
    assert set(first.codes[0, :, 0, 1].tolist()) == {0, 1}
    assert partition(x, 2, 3).codes[0, :, 0, 1].tolist() == [1] * 4000
