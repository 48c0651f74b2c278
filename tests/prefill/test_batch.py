"""Chunks: what goes into one, and that pages and residual leave each once, whatever the chunk size."""

from __future__ import annotations

import pytest
import torch

from hack_kernels import close_pages
from model.sampler import SamplerState
from model.text import FinishRule
from prefill.batch import PrefillBatch, PrefillSequence, plan_chunk
from tests.shapes import FORMAT, INFO
from transport.messages import Job, Sampling


class Recorder:
    """An outlet that keeps what leaves."""

    def __init__(self) -> None:
        self.sent: dict[tuple[int, int], bytes] = {}
        self.residuals: dict[int, tuple[int, bytes]] = {}

    def pages(self, layer: int, first_page: int, num_pages: int, payload: memoryview) -> None:
        size = len(payload) // num_pages
        for i in range(num_pages):
            assert (layer, first_page + i) not in self.sent
            self.sent[layer, first_page + i] = bytes(payload[i * size : (i + 1) * size])

    def residual(self, layer: int, num_tokens: int, payload: memoryview) -> None:
        assert layer not in self.residuals
        self.residuals[layer] = (num_tokens, bytes(payload))


def _sequence(length: int, outlet: Recorder | None = None, name: str = "j") -> PrefillSequence:
    job = Job(job_id=name, prompt=tuple(range(length)), sampling=Sampling(max_tokens=9, seed=0), reply_to="tcp://x")
    return PrefillSequence(
        job,
        outlet,
        SamplerState(job.sampling, job.prompt),
        FinishRule(job, None, (0,)),
        PrefillSequence.scratch(INFO, length),
    )


def test_a_chunk_takes_from_as_many_prompts_as_fit() -> None:
    a, b, c = _sequence(5), _sequence(10), _sequence(4)
    pieces = plan_chunk([a, b, c], 12)
    assert [(p.sequence, p.start, p.end, p.row, p.last) for p in pieces] == [(a, 0, 5, 0, True), (b, 0, 7, 5, False)]
    b.done_tokens = 7
    pieces = plan_chunk([b, c], 12)
    assert [(p.sequence, p.start, p.end, p.row, p.last) for p in pieces] == [(b, 7, 10, 0, True), (c, 0, 4, 3, True)]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 68, 1000])
@pytest.mark.parametrize("length", [1, 4, 67, 68, 69, 140])
def test_pages_and_residual_leave_once_whatever_the_chunk(length: int, chunk_tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn((2, INFO.layers, length, INFO.kv_heads, INFO.head_dim), generator=generator)
    q = torch.randn((length, INFO.heads, INFO.head_dim), generator=generator)
    outlet = Recorder()
    sequence = _sequence(length, outlet)
    outs = []
    while sequence.done_tokens < length:
        pieces = plan_chunk([sequence], chunk_tokens)
        batch = PrefillBatch(FORMAT, pieces)
        rows = slice(pieces[0].start, pieces[0].end)
        for layer in range(INFO.layers):
            out = batch(layer, q[rows], k[layer, rows], v[layer, rows], 0.25)
        outs.append(out)
        sequence.done_tokens = pieces[0].end
    assert not outlet.residuals
    sequence.ship_residual(FORMAT)
    num_pages = FORMAT.num_pages(length)
    assert set(outlet.sent) == {(layer, page) for layer in range(INFO.layers) for page in range(num_pages)}
    for (layer, page), payload in outlet.sent.items():
        rows = slice(4 + 64 * page, 4 + 64 * (page + 1))
        block_k, block_v = k[layer, rows].transpose(0, 1)[None], v[layer, rows].transpose(0, 1)[None]
        expected = close_pages(FORMAT, block_k.contiguous(), block_v.contiguous())
        assert payload == expected.numpy().tobytes()
    kept = [*range(min(4, length)), *range(4 + 64 * num_pages, length)]
    for layer in range(INFO.layers):
        count, payload = outlet.residuals[layer]
        assert count == len(kept) == FORMAT.residual_tokens(length)
        expected = torch.stack((k[layer, kept], v[layer, kept])).transpose(1, 2).contiguous()
        assert payload == expected.numpy().tobytes()
    exact = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k[-1].transpose(0, 1)[None], v[-1].transpose(0, 1)[None],
        is_causal=True, scale=0.25, enable_gqa=True,
    )[0].transpose(0, 1)  # fmt: skip
    torch.testing.assert_close(torch.cat(outs), exact, atol=1e-5, rtol=1e-5)
