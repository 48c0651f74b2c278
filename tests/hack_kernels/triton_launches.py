"""Every launcher through Triton's own launch path as far as the compiled kernel, for an sm_90 that is not there. Run as a module."""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from hack_kernels import PageFormat
from hack_kernels.triton.append import append
from hack_kernels.triton.close_pages import close_pages
from hack_kernels.triton.decode_attention import decode_attention
from hack_kernels.triton.fused_dequant import fused_dequant_attention
from hack_kernels.triton.prefill_attention import prefill_attention
from tests.hack_kernels.sequences import random_kv, random_q, store

compiled: list[str] = []


class AbsentGpu:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def compile_only(self: JITFunction, grid: tuple[int, ...]) -> Any:
    def launch(*arguments: Any, **options: Any) -> None:
        self.run(*arguments, grid=grid, warmup=True, **options)
        compiled.append(self.__name__)

    return launch


def main() -> None:
    driver.set_active(AbsentGpu())
    JITFunction.__getitem__ = compile_only
    for name, dtype in (("k2v2", torch.bfloat16), ("raw", torch.float16)):
        fmt = PageFormat.parse(name, 64, dtype)
        stored = store(fmt, [random_kv(2, n, 64, dtype=dtype) for n in (70, 150)])
        q, block = random_q(2, 8, 64).to(dtype), torch.zeros(2, 2, 64, 64, dtype=dtype)
        decode_attention(fmt, q, *stored.arguments(), 0.1)
        if not fmt.raw:
            fused_dequant_attention(fmt, q, *stored.arguments(), 0.1)
        close_pages(fmt, block, block)
        indices = (stored.residual_rows, stored.residual_tokens, stored.num_pages)
        append(fmt, block[:, :, 0], block[:, :, 0], stored.pages, stored.residual, *indices)
        prefill_attention(fmt, q, block[0], block[0], 0.1, stored.pages, torch.tensor([1, 2]))
        prefill_attention(fmt, q, block[0], block[0], 0.1)
    print(*sorted(set(compiled)))


if __name__ == "__main__":
    main()
