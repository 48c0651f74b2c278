"""Simulated clusters of described GPUs: the planner's roofline gives each worker's costs and memory.

The built-in clusters are pairs of A100s that serve an 8B model of Llama 3's shape; any other comes from a cluster file, split into
prefill and decode workers as the planner would. The constants and their sources are the planner's (devices.json, assumptions.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from packhorse.errors import ConfigError
from scheduler.planner import (
    Instance,
    ModelShape,
    PlanResult,
    Slo,
    Workload,
    driver_name,
    known_devices,
    load_cluster,
    search,
    worker_prior,
)
from scheduler.planner.assumptions import Assumptions
from scheduler.planner.cost import GIGA
from scheduler.planner.model_shape import shape_of
from scheduler.simulator.cluster import ModelSize, SimCluster, SimWorkerSpec
from transport.messages import ModelSizes, Role

LLAMA_8B = shape_of(
    {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "8B of Llama 3's shape",
)  # fmt: skip
MAX_BATCH = 32  # the decode worker's own default (max_jobs)
PREFILL_JOBS = 4  # the prefill worker's
_HOST_MEMORY_BYTES = 64_000_000_000  # of each GPU; half of its share of a common machine
_HOST_BYTES_PER_SECOND = 2e10  # of PCIe 4.0 x16's 32 GB/s, as copies from pinned memory commonly reach
_PAIR_NIC_GBPS = 50.0  # one GPU's share of eight on a machine with 400 Gbit/s
_A100_MEMORY = {"a100": "A100-80GB", "a100-40gb": "A100-40GB"}
Build = Callable[[str, int], SimCluster]


def model_size(shape: ModelShape) -> ModelSize:
    sizes = ModelSizes(**{name: getattr(shape, name) for name in ModelSizes.model_fields})
    return ModelSize(shape.name, shape.layers, shape.kv_heads, shape.head_dim, shape.max_context_tokens, sizes)


def worker_spec(
    worker_id: str, role: Role, instance: Instance, kv_format: str, nic_gbps: float, max_jobs: int
) -> SimWorkerSpec:
    """A worker on `instance`: costs and memory by the roofline, the network at the share that streams reach."""
    return SimWorkerSpec(
        worker_id=worker_id,
        role=role,
        cost=worker_prior(instance, kv_format, nic_gbps),
        max_jobs=max_jobs,
        kv_memory_bytes=int(instance.pool_bytes) if role == "decode" else 0,
        network_bytes_per_second=nic_gbps * GIGA / 8 * instance.assume.nic_share,
        chunk_tokens=instance.assume.chunk_tokens,
        host_memory_bytes=_HOST_MEMORY_BYTES * instance.tp,
        host_bytes_per_second=_HOST_BYTES_PER_SECOND * instance.tp,
        device=driver_name(instance.device) if instance.tp == 1 else "",
        nic_gbps=nic_gbps,
    )


def a100_cluster(
    kv_format: str, max_batch: int = MAX_BATCH, *, prefill: int = 1, decode: int = 1, device: str = "A100-80GB"
) -> SimCluster:
    """`prefill` and `decode` workers of one A100 each, all alike. Raises ConfigError where the batch leaves no room for pages."""
    instance = Instance(LLAMA_8B, known_devices()[device], 1, Assumptions())
    one = worker_spec("", "prefill", instance, kv_format, _PAIR_NIC_GBPS, PREFILL_JOBS)
    other = worker_spec("decode-0", "decode", instance, kv_format, _PAIR_NIC_GBPS, max_batch)
    other.capacity_pages(model_size(LLAMA_8B), kv_format)
    workers = [replace(one, worker_id=f"prefill-{i}") for i in range(prefill)]
    workers += [replace(other, worker_id=f"decode-{i}") for i in range(decode)]
    return SimCluster(f"{prefill} + {decode} {device}", model_size(LLAMA_8B), tuple(workers))


CLUSTERS: dict[str, Build] = {
    "a100": a100_cluster,
    "a100-40gb": lambda kv_format, max_batch: a100_cluster(kv_format, max_batch, device="A100-40GB"),
}


def planned_cluster(
    path: Path, shape: ModelShape, prompts: Sequence[int], outputs: Sequence[int], kv_format: str, max_batch: int | None
) -> SimCluster:
    """The cluster in a file, with the roles and degrees that the planner finds for requests of these lengths in this format.

    Decode workers hold as many jobs as the planner allows at most (`max_batch` of its assumptions), or `max_batch`, but no more than
    leave half of the memory to pages. Raises ConfigError as the planner does.
    """
    sample = Workload("simulated", np.asarray(prompts, dtype=np.float64), np.asarray(outputs, dtype=np.float64))
    found = search(load_cluster(path), shape, sample, Slo(), (kv_format,))
    return SimCluster(path.stem, model_size(shape), tuple(_workers(found, shape, kv_format, max_batch)))


def _workers(found: PlanResult, shape: ModelShape, kv_format: str, max_batch: int | None) -> list[SimWorkerSpec]:
    workers = []
    for given in found.best.assignments:
        machine, option = given.machine, given.option
        instances = option.prefills + option.decodes
        nic = machine.nic_gbps / max(1, instances)  # the machine's workers share it
        for role, count, tp in (
            ("prefill", option.prefills, option.prefill_tp),
            ("decode", option.decodes, option.decode_tp),
        ):
            instance = Instance(shape, machine.device, tp, machine.assume)
            jobs = PREFILL_JOBS if role == "prefill" else max_batch or machine.assume.max_batch
            for number in range(count):
                name = f"{role}-{machine.name}-{number}"
                workers.append(_fitting(worker_spec(name, role, instance, kv_format, nic, jobs), shape, kv_format))  # type: ignore[arg-type]
    return workers


def _fitting(worker: SimWorkerSpec, shape: ModelShape, kv_format: str) -> SimWorkerSpec:
    """With as many jobs as leave half of the memory to pages: small GPUs cannot hold the residual buffers of many."""
    if worker.role == "prefill":
        return worker
    most = worker.kv_memory_bytes // (2 * model_size(shape).residual_bytes)
    if most < 1:
        raise ConfigError(f"worker {worker.worker_id}: {worker.kv_memory_bytes} bytes hold no job", param="cluster")
    return replace(worker, max_jobs=min(worker.max_jobs, most))
