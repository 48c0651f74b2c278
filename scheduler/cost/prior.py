"""What a worker is believed to cost before it reports anything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerPrior:
    """Coefficients in seconds per unit, all at least 0.

    prefill: a, per token, per squared token; decode: a, per token of context (summed over the batch), per sequence;
    transfer: a (latency), per byte; host: the same for a copy between device and host memory, one way.
    """

    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]
    transfer: tuple[float, float]
    host: tuple[float, float] = (1e-3, 1e-10)  # about PCIe 3.0 x16


# For workers of which nothing is known: an 8B model in 16 bits on a GPU of A100's class, over 25 Gbps. Samples rescale it at once.
DEFAULT_PRIOR = WorkerPrior(
    prefill=(5e-3, 1e-4, 1e-9),
    decode=(1.5e-2, 8e-8, 5e-5),
    transfer=(1e-3, 1 / 2.5e9),
)
