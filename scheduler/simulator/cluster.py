"""The described cluster that a simulation runs on: workers with their cost coefficients, memory and network.

The built-in one is a pair of A100-SXM4-80GB for an 8B model of Llama 3's shape in 16 bits; docs/scheduling.md derives its constants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from packhorse.errors import ConfigError
from scheduler.cost import WorkerPrior
from scheduler.pages import KV_FORMATS, PAGE_TOKENS, SINK_TOKENS, page_bytes
from transport.messages import KVLayout, Role

GIGABIT_BYTES = 1e9 / 8


@dataclass(frozen=True)
class ModelSize:
    """What memory and transfer depend on; values of pages and residual are 16 bits wide."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    weight_bytes: int
    max_context_tokens: int

    def layout(self, kv_format: str) -> KVLayout:
        """Raises ConfigError for an unknown format."""
        if kv_format not in KV_FORMATS:
            raise ConfigError(f"kv_format={kv_format!r} is not one of {', '.join(KV_FORMATS)}", param="kv_format")
        return KVLayout(
            model=self.name, revision="simulated", layers=self.layers, kv_heads=self.kv_heads, head_dim=self.head_dim,
            dtype="bfloat16", kv_format=kv_format, page_tokens=PAGE_TOKENS, sink_tokens=SINK_TOKENS,
            page_bytes=page_bytes(kv_format, self.head_dim, 2), layout_version=1,
        )  # fmt: skip

    @property
    def token_bytes(self) -> int:
        """K and V of one token as 16-bit values."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def slot_bytes(self, kv_format: str) -> int:
        """One page of all layers and KV heads."""
        return self.layout(kv_format).page_bytes * self.layers * self.kv_heads

    @property
    def residual_bytes(self) -> int:
        """The buffer of one sequence: sinks and the open block."""
        return (SINK_TOKENS + PAGE_TOKENS) * self.token_bytes


@dataclass(frozen=True)
class SimWorkerSpec:
    """One worker. `cost.prefill` counts on prefill workers, `cost.decode` on decode workers; `cost.transfer` is not used here.

    `kv_memory_bytes` holds a decode worker's pages and residual buffers.
    """

    worker_id: str
    role: Role
    cost: WorkerPrior
    max_jobs: int
    kv_memory_bytes: int = 0
    network_bytes_per_second: float = 25 * GIGABIT_BYTES
    host_bytes_per_second: float = 20e9
    chunk_tokens: int = 2048

    def capacity_pages(self, model: ModelSize, kv_format: str) -> int:
        """Pages in the pool. Raises ConfigError when the residual buffers leave room for none."""
        if self.role == "prefill":
            return 0
        pages = (self.kv_memory_bytes - self.max_jobs * model.residual_bytes) // model.slot_bytes(kv_format)
        if pages < 1:
            raise ConfigError(
                f"worker {self.worker_id}: {self.kv_memory_bytes} bytes hold no page beside {self.max_jobs} residual buffers"
            )
        return pages


@dataclass(frozen=True)
class SimCluster:
    name: str
    model: ModelSize
    workers: tuple[SimWorkerSpec, ...]

    def of_role(self, role: Role) -> list[SimWorkerSpec]:
        return [worker for worker in self.workers if worker.role == role]

    @property
    def max_jobs(self) -> int:
        """Jobs that all workers hold at once."""
        return sum(worker.max_jobs for worker in self.workers)


LLAMA_8B = ModelSize(
    "8B (Llama 3's shape)", layers=32, kv_heads=8, head_dim=128, weight_bytes=16_060_000_000, max_context_tokens=131_072
)
# Derived in docs/scheduling.md from the data sheet (312 TFLOP/s, 2,039 GB/s) and the shares that engines commonly reach.
A100_COST = WorkerPrior(
    prefill=(9.8e-3, 9.4e-5, 2.1e-9),
    decode=(1.3e-2, 7.1e-8, 5.0e-5),
    transfer=(1e-3, 1 / (25 * GIGABIT_BYTES)),
)
_A100_80GB, _A100_40GB = 80_000_000_000, 40_000_000_000
_USED, _RESERVE = 0.9, 2_000_000_000
MAX_BATCH = 32  # the decode worker's own default


def a100_cluster(
    prefill: int = 1, decode: int = 1, memory_bytes: int = _A100_80GB, max_batch: int = MAX_BATCH
) -> SimCluster:
    """`prefill` and `decode` workers of one A100 each, all alike."""
    kv_memory = int(memory_bytes * _USED) - _RESERVE - LLAMA_8B.weight_bytes
    base = SimWorkerSpec("", "prefill", A100_COST, max_jobs=16)
    workers = [replace(base, worker_id=f"prefill-{i}") for i in range(prefill)]
    one = replace(base, role="decode", max_jobs=max_batch, kv_memory_bytes=kv_memory)
    workers += [replace(one, worker_id=f"decode-{i}") for i in range(decode)]
    return SimCluster(f"{prefill}+{decode} A100-{memory_bytes // 10**9}GB", LLAMA_8B, tuple(workers))


CLUSTERS = {
    "a100": lambda: a100_cluster(),
    "a100-40gb": lambda: a100_cluster(memory_bytes=_A100_40GB),
}
