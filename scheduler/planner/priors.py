"""The planner's times as the cost model's priors: fitted to the roofline over a grid of lengths and batches.

For planned instances, as the simulator has them, and for workers that register and name their GPU.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from scheduler.cost import DEFAULT_PRIOR, WorkerPrior, fit_relative
from transport.messages import WorkerInfo

from .assumptions import Assumptions
from .cost import GIGA, Floats, Instance
from .devices import device_named, known_devices
from .model_shape import ModelShape

LINK_LATENCY_SECONDS = 1e-3
_PROMPTS = np.array([64, 256, 512, 1024, 2048, 4096, 8192, 16384], dtype=np.float64)
_BATCHES = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256], dtype=np.float64)
_CONTEXTS = np.array([128, 512, 2048, 8192], dtype=np.float64)  # per sequence
_SIXTEEN_BITS = ("bfloat16", "float16")


@lru_cache(maxsize=256)  # a fit takes milliseconds, and fleets have many workers of a kind
def worker_prior(instance: Instance, kv_format: str, nic_gbps: float) -> WorkerPrior:
    """What a worker on `instance` is believed to cost; transfers over a NIC of `nic_gbps`, at the share that streams reach."""
    prefill = instance.prefill_seconds(_PROMPTS)
    batches, contexts = (grid.ravel() for grid in np.meshgrid(_BATCHES, _CONTEXTS))
    steps = instance.step_seconds(batches, batches * contexts, kv_format)
    a, b, c = _fitted(np.stack([np.ones_like(_PROMPTS), _PROMPTS, _PROMPTS**2], axis=1), prefill)
    d, e, f = _fitted(np.stack([np.ones_like(batches), batches * contexts, batches], axis=1), steps)
    return WorkerPrior((a, b, c), (d, e, f), _transfer(nic_gbps, instance.assume))


def registered_prior(info: WorkerInfo) -> tuple[WorkerPrior, str]:
    """What a worker that registers is believed to cost, and what that rests on.

    The roofline's times where it names a GPU of devices.json and the sizes of a model in 16 bits, else DEFAULT_PRIOR. Transfers by its
    `nic_gbps`; without one by the GPU's share of a typical cloud machine's network, as for cluster files.
    """
    assume = Assumptions()
    try:
        name, shape = _device_name(info), _shape(info)
        device = known_devices()[name]
        nic_gbps = info.nic_gbps or device.typical_nic_gbps(1)
        prior = worker_prior(Instance(shape, device, 1, assume), info.layout.kv_format, nic_gbps)
        return prior, f"the planner's figures of {name}"
    except ValueError as error:
        nic = info.nic_gbps
        prior = replace(DEFAULT_PRIOR, transfer=_transfer(nic, assume)) if nic else DEFAULT_PRIOR
        return prior, f"the defaults ({error})"


def _device_name(info: WorkerInfo) -> str:
    name = device_named(info.device)
    if name is None:
        raise ValueError("the planner has no figures of it")
    return name


def _shape(info: WorkerInfo) -> ModelShape:
    layout = info.layout
    if info.sizes is None:
        raise ValueError("the worker does not state its model's sizes")
    if layout.dtype not in _SIXTEEN_BITS:
        raise ValueError(f"the planner's figures are of 16 bits, the model computes in {layout.dtype}")
    return ModelShape(
        name=layout.model,
        **layout.model_dump(include={"layers", "kv_heads", "head_dim"}),
        max_context_tokens=info.max_context_tokens,
        **info.sizes.model_dump(),
    )


def _transfer(nic_gbps: float, assume: Assumptions) -> tuple[float, float]:
    return LINK_LATENCY_SECONDS, 8 / (nic_gbps * GIGA * assume.nic_share)


def _fitted(features: Floats, seconds: Floats) -> tuple[float, ...]:
    """A fit that nothing pulls: each term alone may explain a third of the times."""
    even = np.median(seconds) / np.median(features, axis=0) / features.shape[1]
    return fit_relative(features, seconds, even.tolist(), prior_weight=1e-6)
