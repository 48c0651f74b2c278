"""What one instance (a model on `tp` GPUs of one kind) takes: memory, prefill time, decode step time. A roofline with stated shares.

    prefill   max(2 * params * tokens + attention, at the matrix peak;  one reading of the weights per chunk)
    decode    max(one reading of the weights; 2 * params * batch)  +  attention over the pages of the batch
    both      + launches per layer, + all-reduces of tensor parallelism

Attention over pages is bound by bytes for raw pages, and by bytes or by the rate of expanding codes for coded ones (assumptions.py).
Prefill computes on exact keys whatever the format; closing pages is not counted. Knows nothing of workloads or clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from packhorse.errors import ConfigError
from scheduler.pages import PAGE_TOKENS, SINK_TOKENS, page_bytes

from .assumptions import Assumptions
from .devices import Device
from .model_shape import DTYPE_BYTES, ModelShape

Floats = NDArray[np.float64]
GIGA, TERA = 1e9, 1e12
RESIDUAL_SLOTS = SINK_TOKENS + PAGE_TOKENS
MEAN_RESIDUAL_TOKENS = SINK_TOKENS + PAGE_TOKENS / 2


@dataclass(frozen=True)
class PageSizes:
    """Bytes of one model's KV cache in one format, over all layers and KV heads."""

    model: ModelShape
    kv_format: str

    def check(self) -> None:
        """Raises ConfigError where the format has no pages for the model's heads."""
        try:
            page_bytes(self.kv_format, self.model.head_dim, DTYPE_BYTES)
        except ValueError as error:
            raise ConfigError(f"{self.model.name}: {error}") from error

    @cached_property
    def page(self) -> int:
        """One page of PAGE_TOKENS tokens."""
        return page_bytes(self.kv_format, self.model.head_dim, DTYPE_BYTES) * self.model.layers * self.model.kv_heads

    @property
    def residual_slot(self) -> int:
        """One token of the residual, as it is in every format."""
        return self.model.kv_values * DTYPE_BYTES

    def pages(self, tokens: Floats) -> Floats:
        """Closed pages of sequences of `tokens`."""
        return np.asarray(np.maximum(0.0, tokens - SINK_TOKENS) // PAGE_TOKENS)

    def shipped(self, tokens: Floats) -> Floats:
        """Bytes that cross the network for prompts of `tokens`: pages and residual."""
        pages = self.pages(tokens)
        return pages * self.page + (tokens - pages * PAGE_TOKENS) * self.residual_slot

    def held(self, tokens: Floats) -> Floats:
        """Bytes that a decode worker reserves for sequences that grow to `tokens`: pages, and the whole residual buffer."""
        return self.pages(tokens) * self.page + RESIDUAL_SLOTS * self.residual_slot


@dataclass(frozen=True)
class Instance:
    """A model on `tp` GPUs. KV heads are split over at most `kv_heads` GPUs; beyond that they are held more than once."""

    model: ModelShape
    device: Device
    tp: int
    assume: Assumptions

    @property
    def kv_copies(self) -> float:
        return max(1.0, self.tp / self.model.kv_heads)

    @property
    def free_bytes(self) -> float:
        """What weights and reserves leave of all its GPUs; negative where the model does not fit."""
        usable = self.device.memory_gb * self.assume.memory_share - self.assume.reserve_gb
        return self.tp * usable * GIGA - self.model.weight_bytes

    @property
    def pool_bytes(self) -> float:
        """Room for pages and residuals on a decode worker, copies of KV heads counted once."""
        return max(0.0, self.free_bytes / self.kv_copies)

    def prefill_fits(self, longest_prompt: float) -> bool:
        """Whether weights, the exact keys of the longest prompt and unacknowledged pages fit."""
        exact = longest_prompt * self.model.kv_values * DTYPE_BYTES * self.kv_copies
        return self.free_bytes >= exact + self.assume.lease_gb * GIGA

    def prefill_seconds(self, tokens: Floats) -> Floats:
        """Of one prompt of each length, alone on the instance."""
        return self._prefill(tokens, np.ceil(tokens / self.assume.chunk_tokens))

    def prefill_work_seconds(self, tokens: Floats) -> Floats:
        """What a prompt adds to a busy instance, where up to `prefill_jobs` short prompts share a chunk."""
        return self._prefill(tokens, np.maximum(tokens / self.assume.chunk_tokens, 1 / self.assume.prefill_jobs))

    def _prefill(self, tokens: Floats, chunks: Floats) -> Floats:
        model, assume = self.model, self.assume
        linear = 2 * model.active_params * tokens + 2 * model.output_params
        attention = 2 * model.layers * model.heads * model.head_dim * tokens**2  # causal: half of 4 * n^2 * d
        compute = (linear + attention) / (self.tp * self.device.fp16_tflops * TERA * assume.prefill_flops)
        weights = chunks * self._weight_seconds(assume.chunk_tokens)
        reduced = tokens * model.hidden * DTYPE_BYTES
        return np.maximum(compute, weights) + chunks * self._launch_seconds + self._all_reduce_seconds(chunks, reduced)

    def step_seconds(self, batch: Floats, context_tokens: Floats, kv_format: str) -> Floats:
        """Of one decode step over `batch` sequences that hold `context_tokens` together."""
        model, assume = self.model, self.assume
        active = model.active_params + model.output_params
        compute = 2 * active * batch / (self.tp * self.device.fp16_tflops * TERA * assume.decode_flops)
        matrices = np.maximum(self._weight_seconds(batch), compute)
        reduced = batch * model.hidden * DTYPE_BYTES
        attention = self._attention_seconds(batch, context_tokens, kv_format)
        return matrices + attention + self._launch_seconds + self._all_reduce_seconds(np.ones_like(batch), reduced)

    def _attention_seconds(self, batch: Floats, context_tokens: Floats, kv_format: str) -> Floats:
        """Per GPU, which holds 1 / min(tp, kv_heads) of the KV heads."""
        model, device, assume = self.model, self.device, self.assume
        share = self.kv_copies / self.tp
        raw_bytes = PageSizes(model, "raw").page / PAGE_TOKENS
        rate = device.bandwidth_gb_per_s * GIGA * assume.raw_kv_bandwidth
        products = 4 * model.layers * model.heads * model.head_dim * context_tokens / self.tp
        if kv_format == "raw":
            computed = products / (device.fp16_tflops * TERA * assume.attention_flops)
            return np.maximum(context_tokens * raw_bytes * share / rate, computed)
        residual = np.minimum(context_tokens, batch * MEAN_RESIDUAL_TOKENS)
        paged = context_tokens - residual
        expanded = paged * model.kv_values * share / (assume.codes_per_sm_cycle * device.sms * device.boost_ghz * GIGA)
        read = paged * PageSizes(model, kv_format).page / PAGE_TOKENS * share / rate
        computed = products / (device.codes_tops * TERA * assume.attention_flops)
        return np.maximum(np.maximum(read, expanded), computed) + residual * raw_bytes * share / rate

    def _weight_seconds(self, tokens: Floats | int) -> Floats:
        """One reading of the weights that a step over `tokens` tokens touches."""
        model = self.model
        touched = np.asarray(model.touched_params(tokens)) + model.output_params
        rate = self.device.bandwidth_gb_per_s * GIGA * self.assume.weight_bandwidth
        return np.asarray(touched * DTYPE_BYTES / (self.tp * rate), dtype=np.float64)

    @property
    def _launch_seconds(self) -> float:
        return self.model.layers * self.assume.layer_seconds

    def _all_reduce_seconds(self, steps: Floats, reduced_bytes: Floats) -> Floats:
        """Two per layer over `reduced_bytes` in all; rings send 2 (tp - 1) / tp of them."""
        if self.tp == 1:
            return np.zeros_like(reduced_bytes)
        rate = self.device.interconnect_gb_per_s * GIGA * self.assume.interconnect_share
        sent = 2 * (self.tp - 1) / self.tp * reduced_bytes / rate
        return 2 * self.model.layers * (steps * self.assume.all_reduce_seconds + sent)
