"""What share of a data sheet's figures is reached, and what else the planner assumes: each constant with its evidence.

A cluster file may set any of them under `assumptions:`, for instance from measurements.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Assumptions(BaseModel):
    """Shares are of the device's dense peak or bandwidth.

    Attention over the pages: `raw_kv_bandwidth` and `codes_per_sm_cycle` are read off the decode attention times that HACK's
    authors publish with their 2026 code (64K to 128K tokens, 8 KV heads of 128 channels): 16-bit pages are read at 0.93 (A6000),
    0.93 (RTX 4000 Ada) and 0.90 (H200) of the bandwidth; codes are computed on at 7.7, 7.2 and 8.7 K and V values per
    multiprocessor and clock, whatever the bandwidth. So codes are read 3 to 5 times faster than raw pages on GDDR6 cards, and hardly
    faster on an H200. The least of each is taken. Our own kernels on GPUs are not measured yet.

    `weight_bandwidth` with `raw_kv_bandwidth` gives decode steps within 5 % of those measured with vLLM on an RTX 4090
    (tests/scheduler/planner/test_measured.py). The other shares are what public serving engines are commonly seen to reach, and are
    not measured here; `layer_seconds` is a guess for eager PyTorch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    memory_share: float = Field(default=0.90, gt=0, le=1, description="of the GPU's memory that may be used")
    reserve_gb: float = Field(default=2.0, ge=0, description="per GPU: CUDA context, activations of a chunk, logits")
    lease_gb: float = Field(default=1.0, ge=0, description="prefill: unacknowledged pages (lease_bytes)")
    prefill_flops: float = Field(default=0.55, gt=0, le=1, description="matrix products over a chunk of tokens")
    decode_flops: float = Field(default=0.40, gt=0, le=1, description="matrix products over a batch of single tokens")
    weight_bandwidth: float = Field(default=0.80, gt=0, le=1)
    raw_kv_bandwidth: float = Field(default=0.90, gt=0, le=1)
    codes_per_sm_cycle: float = Field(default=7.2, gt=0, description="K and V values of coded pages per SM and clock")
    attention_flops: float = Field(default=0.40, gt=0, le=1)
    layer_seconds: float = Field(default=100e-6, ge=0, description="per layer and step: launches that nothing hides")
    all_reduce_seconds: float = Field(
        default=20e-6, ge=0, description="latency of one, tensor parallelism has two per layer"
    )
    interconnect_share: float = Field(default=0.70, gt=0, le=1)
    nic_share: float = Field(default=0.80, gt=0, le=1, description="of the NIC's line rate that page streams reach")
    pool_fill: float = Field(default=0.95, gt=0, le=1, description="share of the page pool that is reserved on average")
    max_utilization: float = Field(
        default=0.95, gt=0, lt=1, description="of prefill workers, where no SLO asks for less"
    )
    max_batch: int = Field(default=256, ge=1)
    chunk_tokens: int = Field(default=512, ge=1)
    prefill_jobs: int = Field(default=4, ge=1, description="prompts that share a chunk (max_jobs of prefill workers)")
    slo_attainment: float = Field(default=0.90, gt=0, lt=1, description="share of requests that must meet the TTFT SLO")
