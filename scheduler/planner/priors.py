"""The planner's times as the cost model's priors: fitted to the roofline over a grid of lengths and batches."""

from __future__ import annotations

import numpy as np

from scheduler.cost import WorkerPrior, fit_relative

from .cost import GIGA, Floats, Instance

LINK_LATENCY_SECONDS = 1e-3
_PROMPTS = np.array([64, 256, 512, 1024, 2048, 4096, 8192, 16384], dtype=np.float64)
_BATCHES = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256], dtype=np.float64)
_CONTEXTS = np.array([128, 512, 2048, 8192], dtype=np.float64)  # per sequence


def worker_prior(instance: Instance, kv_format: str, nic_gbps: float) -> WorkerPrior:
    """What a worker on `instance` is believed to cost; transfers over a NIC of `nic_gbps`, at the share that streams reach."""
    prefill = instance.prefill_seconds(_PROMPTS)
    batches, contexts = (grid.ravel() for grid in np.meshgrid(_BATCHES, _CONTEXTS))
    steps = instance.step_seconds(batches, batches * contexts, kv_format)
    a, b, c = _fitted(np.stack([np.ones_like(_PROMPTS), _PROMPTS, _PROMPTS**2], axis=1), prefill)
    d, e, f = _fitted(np.stack([np.ones_like(batches), batches * contexts, batches], axis=1), steps)
    per_byte = 8 / (nic_gbps * GIGA * instance.assume.nic_share)
    return WorkerPrior((a, b, c), (d, e, f), (LINK_LATENCY_SECONDS, per_byte))


def _fitted(features: Floats, seconds: Floats) -> tuple[float, ...]:
    """A fit that nothing pulls: each term alone may explain a third of the times."""
    even = np.median(seconds) / np.median(features, axis=0) / features.shape[1]
    return fit_relative(features, seconds, even.tolist(), prior_weight=1e-6)
