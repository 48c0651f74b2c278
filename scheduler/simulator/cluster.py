"""The cluster that a simulation runs on: workers with their cost coefficients, memory and network. Knows nothing of kinds of GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from packhorse.errors import ConfigError
from scheduler.cost import WorkerPrior
from scheduler.pages import KV_FORMATS, LAYOUT_VERSION, PAGE_TOKENS, SINK_TOKENS, page_bytes
from transport.messages import KVLayout, ModelSizes, Role


@dataclass(frozen=True)
class ModelSize:
    """What memory and transfer depend on; values of pages and residual are 16 bits wide. `sizes`: what workers say of it."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    max_context_tokens: int
    sizes: ModelSizes | None = None

    def layout(self, kv_format: str) -> KVLayout:
        """Raises ConfigError for an unknown format."""
        if kv_format not in KV_FORMATS:
            raise ConfigError(f"kv_format={kv_format!r} is not one of {', '.join(KV_FORMATS)}", param="kv_format")
        return KVLayout(
            model=self.name, revision="simulated", layers=self.layers, kv_heads=self.kv_heads, head_dim=self.head_dim,
            dtype="bfloat16", kv_format=kv_format, page_tokens=PAGE_TOKENS, sink_tokens=SINK_TOKENS,
            page_bytes=page_bytes(kv_format, self.head_dim, 2), layout_version=LAYOUT_VERSION,
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
    """One worker. `cost.prefill` counts on prefill workers, `cost.decode` on decode workers; of `cost.transfer` only the latency.

    `kv_memory_bytes` holds a decode worker's pages and residual buffers, `host_memory_bytes` the pages of preempted jobs. Streams get
    `network_bytes_per_second`; `nic_gbps` is what the worker says of its network when it registers, beside `device` where it names that.
    """

    worker_id: str
    role: Role
    cost: WorkerPrior
    max_jobs: int
    kv_memory_bytes: int = 0
    network_bytes_per_second: float = 1e10
    chunk_tokens: int = 512
    host_memory_bytes: int = 0
    host_bytes_per_second: float = 2e10
    device: str = ""
    nic_gbps: float | None = None

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

    def host_pages(self, model: ModelSize, kv_format: str) -> int:
        return self.host_memory_bytes // model.slot_bytes(kv_format) if self.role == "decode" else 0


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

    def unnamed(self) -> SimCluster:
        """The cluster whose workers do not say what their devices are."""
        workers = (replace(worker, device="") for worker in self.workers)
        return replace(self, workers=tuple(workers))
