"""Checks of the Triton kernels against the reference, each a function; run as a module by name, in a process that interprets kernels.

The kernels quantize queries and weights from float16. q~ = q * k_scale is rounded twice on its way, off by at most 2 * 2**-11 of itself
before it becomes int8: a rounding error of half a step becomes one of at most 0.5 + 127 * 2**-10 = 0.624 steps. ROOM is that over 0.5.
The weights of int8 steps, V's zeros and the total are the same float16 numbers, off by 2**-11 of themselves: as if scores were, which
moves an average of values by at most 2**-12 of their range. v_scale relative to its largest is rounded once more (0.563 steps, within
ROOM), and so is the product of v_scale and v_zero (2**-11 of it).
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor

from hack_kernels import PageFormat
from hack_kernels.reference import append as reference_append
from hack_kernels.reference.close_pages import close_pages as reference_close
from hack_kernels.reference.close_pages import open_v_groups
from hack_kernels.reference.decode_attention import decode_attention as reference_decode
from hack_kernels.reference.prefill_attention import prefill_attention as reference_prefill
from hack_kernels.triton.append import append
from hack_kernels.triton.close_pages import close_pages
from hack_kernels.triton.decode_attention import decode_attention
from hack_kernels.triton.fused_dequant import fused_dequant_attention
from hack_kernels.triton.prefill_attention import prefill_attention
from tests.hack_kernels.sequences import Stored, attend_float64, error_bound, random_kv, random_q, store

ROOM = 1 + 127 * 2**-9
FORMATS = [f"k{k}v{v}" for k in (2, 4, 8) for v in (2, 4, 8)]


def make(name: str, head_dim: int, lengths: list[int], kv_heads: int = 2, dtype: torch.dtype = torch.float32) -> Stored:
    fmt = PageFormat.parse(name, head_dim, dtype)
    return store(fmt, [random_kv(kv_heads, n, head_dim, seed=n, dtype=dtype) for n in lengths])


def halves_room(stored: Stored, i: int, v: Tensor) -> float:
    """What float16 may do beside ROOM: to the weights, and to v_scale * v_zero, with what codes in the top field lack."""
    if stored.fmt.v_bits is None or stored.num_pages[i] == 0:
        return 0.0
    scale, offset = open_v_groups(stored.fmt, stored.owned(i))
    products = scale * (offset.abs() + 2 ** (stored.fmt.v_bits - 1))
    return float(2**-11 * products.max() + 2**-12 * (v.amax(1) - v.amin(1)).max())


def check_attention(stored: Stored, q: Tensor, dequant: bool = False) -> None:
    scale = q.shape[-1] ** -0.5
    attend = fused_dequant_attention if dequant else decode_attention
    out = attend(stored.fmt, q, *stored.arguments(), scale)
    assert out.shape == q.shape
    assert out.dtype == q.dtype
    assert out.isfinite().all()
    for i in range(q.shape[0]):
        k, v = stored.opened(i)
        error = (out[i].double() - attend_float64(q[i], k, v, scale)).abs()
        bound = error_bound(stored.fmt, q[i], stored.owned(i), v, scale) * ROOM + halves_room(stored, i, v)
        rounding = 0 if q.dtype == torch.float32 else 2**-7 * out[i].abs().double()  # the interpreter truncates to bf16
        assert (error <= bound + rounding).all(), f"{stored.fmt.name} sequence {i}: {error.max()}"


def check_near_reference(stored: Stored, q: Tensor, dequant: bool = False) -> None:
    """Far closer than the bound: as close as float64 attention to the reference, within twice that and float16's own."""
    scale = q.shape[-1] ** -0.5
    attend = fused_dequant_attention if dequant else decode_attention
    out = attend(stored.fmt, q, *stored.arguments(), scale)
    expected = reference_decode(stored.fmt, q, *stored.arguments(), scale)
    for i in range(q.shape[0]):
        k, v = stored.opened(i)
        exact = attend_float64(q[i], k, v, scale)
        allowed = 2 * (expected[i].double() - exact).abs().max() + 2**-9 * v.abs().max()
        assert (out[i].double() - exact).abs().max() <= allowed


def formats() -> None:
    """Every pair of bit widths: no page, one, several; lengths that fill nothing."""
    for name in [*FORMATS, "raw"]:
        stored, q = make(name, 64, [1, 70, 150]), random_q(3, 4, 64)
        check_attention(stored, q)
        check_near_reference(stored, q)


def shapes() -> None:
    """Head dims with and without padding, GQA 1 to 16."""
    for name, head_dim, kv_heads, group in (
        ("k2v2", 80, 2, 3), ("k4v2", 96, 1, 1), ("k2v2", 128, 2, 4), ("k8v8", 128, 1, 5), ("k2v8", 256, 1, 2),
        ("k8v4", 256, 1, 1), ("k4v4", 48, 1, 2), ("k2v4", 16, 1, 4), ("k2v2", 128, 1, 16), ("k4v8", 64, 1, 9),
        ("k2v2", 192, 1, 2), ("k8v4", 144, 1, 1),
        ("raw", 80, 2, 3), ("raw", 256, 1, 16), ("raw", 96, 1, 1),
    ):  # fmt: skip
        stored, q = make(name, head_dim, [5, 140], kv_heads), random_q(2, kv_heads * group, head_dim)
        check_attention(stored, q)
        check_near_reference(stored, q)


def dtypes() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for name in ("k2v2", "k4v4", "raw"):
            check_attention(make(name, 64, [3, 150], dtype=dtype), random_q(2, 4, 64).to(dtype))


def several() -> None:
    """Up to 8 queries to a sequence, causal among themselves: each sees what it would alone, in any tile of rows."""
    for name, head_dim, kv_heads, group, queries in (
        ("k2v2", 64, 1, 2, 8), ("k4v2", 80, 1, 3, 3), ("raw", 64, 2, 4, 5), ("k2v4", 64, 1, 16, 2),
    ):  # fmt: skip
        stored = make(name, head_dim, [3, 140], kv_heads)
        stored.residual_tokens = stored.residual_tokens.clamp(min=queries)
        stored.residual.nan_to_num_(nan=0.5)  # of the slots that the clamp added
        q = torch.stack([random_q(2, kv_heads * group, head_dim, seed) for seed in range(queries)], 1)
        out = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
        assert out.shape == q.shape
        last = stored.residual_tokens
        for i in (0, queries - 1):
            stored.residual_tokens = last - (queries - 1 - i)
            alone = decode_attention(stored.fmt, q[:, i], *stored.arguments(), 0.125)
            torch.testing.assert_close(out[:, i], alone, atol=1e-6, rtol=0)
            check_attention(stored, q[:, i])


def dequant() -> None:
    for name, head_dim in (("k2v2", 128), ("k4v2", 80), ("k8v8", 64), ("k2v4", 256)):
        stored, q = make(name, head_dim, [70, 200], 1), random_q(2, 4, head_dim)
        check_attention(stored, q, dequant=True)
        check_near_reference(stored, q, dequant=True)


def poison() -> None:
    """Foreign pages, tables beyond num_pages and a sequence's neighbours do not matter; a bad page reaches its own sequence alone."""
    for name in ("k2v2", "raw"):
        stored, q = make(name, 64, [150, 150, 2]), random_q(3, 4, 64)
        for i, count in enumerate(stored.num_pages.tolist()):
            stored.page_table[i, count:] = 10**9
        first = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
        assert first.isfinite().all()
        stored.fmt.view(stored.pages, "k_min" if name == "k2v2" else "k")[stored.page_table[1, 0]] = torch.nan
        second = decode_attention(stored.fmt, q, *stored.arguments(), 0.125)
        assert torch.equal(first[[0, 2]], second[[0, 2]])
        assert second[1].isnan().all()


def extremes() -> None:
    """Scores far apart, scales near the ends of float16, and pages whose scores outgrow those before them."""
    for factor in (1e3, 1e-6):
        kv = random_kv(1, 400, 64)
        kv[0, :, 100:] *= factor
        kv[1, :, 200:] *= factor
        stored = store(PageFormat.parse("k8v8", 64, torch.float32), [kv])
        for q in (random_q(1, 2, 64) * 100, random_q(1, 2, 64) * 1e-20, torch.zeros(1, 2, 64)):
            out = decode_attention(stored.fmt, q, *stored.arguments(), 1.0)
            expected = reference_decode(stored.fmt, q, *stored.arguments(), 1.0)
            torch.testing.assert_close(out, expected, atol=2e-2 * max(1.0, float(expected.abs().max())), rtol=0)


def empty() -> None:
    stored = make("k2v2", 64, [60])
    none = torch.zeros(0, dtype=torch.int64)
    q = torch.zeros(0, 4, 64)
    pages = (stored.pages, torch.zeros(0, 3, dtype=torch.int64), none, stored.residual, none, none)
    assert decode_attention(stored.fmt, q, *pages, 0.125).shape == (0, 4, 64)
    stored.pages, stored.page_table = stored.pages[:0], stored.page_table[:, :0]
    check_attention(stored, random_q(1, 4, 64))
    assert close_pages(stored.fmt, torch.zeros(0, 2, 64, 64), torch.zeros(0, 2, 64, 64)).shape[0] == 0


def closing() -> None:
    """The same bytes as the reference's, whatever the values, every byte written."""
    generator = torch.Generator().manual_seed(0)
    for index, name in enumerate([*FORMATS, "raw"]):
        head_dim, dtype = ((64, 80, 96, 128, 256)[index % 5], (torch.float32, torch.bfloat16, torch.float16)[index % 3])
        fmt = PageFormat.parse(name, head_dim, dtype)
        kv = torch.randn(2, 3, 2, 64, head_dim, generator=generator) * torch.tensor([1e-3, 1, 30]).view(1, 3, 1, 1, 1)
        kv[0, 1, :, :, 5] += 100
        kv[1, 1, :, 9] += 1000
        kv[:, 0, 0, 7] = 0
        kv[:, 2, 0, :, 3] = 5
        kv[0, 2, 1, 4, 2] = torch.nan
        kv[1, 2, 1, 5, 6] = torch.nan
        kv[0, 2, 1, 1, 1] = -torch.inf
        kv[1, 2, 1, 3, 1] = torch.inf
        k, v = kv.to(dtype)
        for fill in (0, 255):
            out = torch.full((3, 2, fmt.page_bytes), fill, dtype=torch.uint8)
            assert close_pages(fmt, k, v, out) is out
            assert torch.equal(out, reference_close(fmt, k, v)), f"{name} at head_dim {head_dim}, {dtype}"


def growing() -> None:
    """A sequence and its neighbour, token by token, in step with the reference, byte for byte."""
    for name in ("k2v2", "raw"):
        fmt = PageFormat.parse(name, 64, torch.bfloat16)
        kv = random_kv(2, 134, 64, dtype=torch.bfloat16)
        rows, first = torch.tensor([2, 0]), torch.tensor([0, 60])
        residuals = [torch.zeros(3, 2, 2, fmt.residual_slots, 64, dtype=torch.bfloat16) for _ in range(2)]
        pools = [torch.zeros(5, 2, fmt.page_bytes, dtype=torch.uint8) for _ in range(2)]
        for n in range(70):
            count, slots = first + n, torch.tensor([1, 3])
            k, v = (kv[i][:, count].transpose(0, 1) for i in range(2))
            append(fmt, k, v, pools[0], residuals[0], rows, count, slots)
            reference_append.append(fmt, k, v, pools[1], residuals[1], rows, count, slots)
        assert torch.equal(*residuals)
        assert torch.equal(*pools)
        assert pools[0].any(-1).any(-1).tolist() == [False, True, False, True, False]


def prefill() -> None:
    for name, head_dim, kv_heads, group, chunk, exact, pages in (
        ("k2v2", 64, 2, 2, 20, 33, 3), ("raw", 80, 1, 3, 70, 70, 2), ("k4v2", 128, 1, 4, 9, 9, 2),
        ("k2v2", 64, 1, 2, 33, 33, 0), ("k8v4", 96, 1, 16, 5, 80, 1), ("k2v2", 64, 1, 1, 1, 1, 1),
    ):  # fmt: skip
        fmt, tokens = PageFormat.parse(name, head_dim, torch.float32), 64 * pages
        kv = random_kv(kv_heads, tokens + exact, head_dim)
        pool = torch.full((pages + 2, kv_heads, fmt.page_bytes), 255, dtype=torch.uint8)
        slots = torch.randperm(pages + 2, generator=torch.Generator().manual_seed(0))[:pages]
        if pages:
            blocks = kv[:, :, :tokens].unflatten(2, (pages, 64)).transpose(1, 2)
            pool[slots] = reference_close(fmt, blocks[0], blocks[1])
        q = random_q(chunk, kv_heads * group, head_dim)
        history = (pool, slots) if pages else ()
        arguments = (q, kv[0, :, tokens:], kv[1, :, tokens:], head_dim**-0.5, *history)
        out, expected = prefill_attention(fmt, *arguments), reference_prefill(fmt, *arguments)
        # Both quantize to the same steps; values differ where a number near the middle of two integers is rounded the other way.
        atol = 1e-5 if fmt.raw or not pages else 2e-2 * float(kv[1].abs().max())
        torch.testing.assert_close(out, expected, atol=atol, rtol=1e-5)


def ptx() -> None:
    """The GPU's way through the kernels, its inline PTX emulated: helper by helper the plain way's bits, and attention within bounds."""
    from hack_kernels.triton import history
    from tests.hack_kernels import ptx_emulator
    from tests.hack_kernels.triton_helpers import check_helpers

    ptx_emulator.install()
    check_helpers()
    history.INTERPRETED = False
    for name, head_dim in (("k2v2", 128), ("k4v4", 64), ("k8v8", 64), ("k2v4", 80)):
        stored, q = make(name, head_dim, [70, 200], 1), random_q(2, 4, head_dim)
        for dequant_too in (False, True):
            check_attention(stored, q, dequant_too)
            check_near_reference(stored, q, dequant_too)


CASES = {
    case.__name__: case
    for case in (formats, shapes, dtypes, several, dequant, poison, extremes, empty, closing, growing, prefill, ptx)
}

if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="triton")  # numpy's remarks on NaN and overflow inside the interpreter
    torch.set_num_threads(1)
    for case_name in sys.argv[1:]:
        CASES[case_name]()
