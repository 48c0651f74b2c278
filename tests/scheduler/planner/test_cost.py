"""Memory and time of one instance: by hand where that is possible, and in the right order where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.pages import KV_FORMATS
from scheduler.planner import Instance, ModelShape, PageSizes, known_devices, worker_prior
from scheduler.planner.assumptions import Assumptions

ASSUME = Assumptions()
ONE, MANY = np.array([1.0]), np.array([32.0])


def instance(llama: ModelShape, gpu: str, tp: int = 1, **assumptions: float) -> Instance:
    return Instance(llama, known_devices()[gpu], tp, Assumptions(**assumptions))


def step(of: Instance, batch: float, context: float, kv_format: str = "raw") -> float:
    return float(of.step_seconds(np.array([batch]), np.array([batch * context]), kv_format)[0])


def test_memory_by_hand(llama: ModelShape) -> None:
    one = instance(llama, "A100-80GB")
    assert one.pool_bytes == pytest.approx(80e9 * 0.9 - 2e9 - llama.weight_bytes)
    assert instance(llama, "T4").pool_bytes == 0
    assert instance(llama, "T4", tp=2).pool_bytes == pytest.approx(2 * (16e9 * 0.9 - 2e9) - llama.weight_bytes)
    sixteen = instance(llama, "A100-80GB", tp=16)
    assert sixteen.pool_bytes == pytest.approx((16 * 70e9 - llama.weight_bytes) / 2), (
        "8 KV heads on 16 GPUs: each twice"
    )


def test_prefill_needs_room_for_the_longest_prompts_exact_keys(llama: ModelShape) -> None:
    small = instance(llama, "A10G")
    room = small.free_bytes - 1e9
    longest = room / (llama.kv_values * 2)
    assert small.prefill_fits(longest * 0.99)
    assert not small.prefill_fits(longest * 1.01)


def test_page_sizes_by_hand(llama: ModelShape) -> None:
    raw = PageSizes(llama, "raw")
    assert raw.page == 64 * 2 * 32 * 8 * 128 * 2
    tokens = np.array([3.0, 4 + 64, 4 + 64 + 63, 1000])
    assert raw.pages(tokens).tolist() == [0, 1, 1, 15]
    assert raw.shipped(tokens).tolist() == pytest.approx((tokens * llama.kv_values * 2).tolist())
    k4v2 = PageSizes(llama, "k4v2")
    assert 0.19 < k4v2.page / raw.page < 0.25
    assert k4v2.held(tokens)[0] == 68 * llama.kv_values * 2


def test_a_long_prefill_is_bound_by_compute_and_a_short_one_by_the_weights(llama: ModelShape) -> None:
    fast = instance(llama, "A100-80GB", layer_seconds=0.0)
    tokens = 4096.0
    operations = 2 * llama.active_params * tokens + 2 * llama.output_params + 2 * 32 * 32 * 128 * tokens**2
    assert fast.prefill_seconds(np.array([tokens]))[0] == pytest.approx(operations / (312e12 * 0.55))
    short = fast.prefill_seconds(ONE)[0]
    read = (llama.block_params + llama.output_params) * 2 / (2039e9 * 0.8)
    assert short == pytest.approx(read)
    assert fast.prefill_work_seconds(ONE)[0] == pytest.approx(read / ASSUME.prefill_jobs)
    assert fast.prefill_seconds(ONE * 513)[0] >= 2 * read


def test_a_decode_step_by_hand(llama: ModelShape) -> None:
    bare = instance(llama, "A100-80GB", layer_seconds=0.0)
    weights = (llama.block_params + llama.output_params) * 2 / (2039e9 * 0.8)
    keys = 8 * 2000 * llama.kv_values * 2 / (2039e9 * 0.9)
    assert step(bare, 8, 2000) == pytest.approx(weights + keys)
    launched = instance(llama, "A100-80GB", layer_seconds=1e-4)
    assert step(launched, 8, 2000) == pytest.approx(weights + keys + 32 * 1e-4)


def test_codes_gain_where_bandwidth_is_scarce(llama: ModelShape) -> None:
    """The published kernel times: codes are read several times faster on GDDR6, and hardly faster on an H200."""

    def attention(gpu: str, kv_format: str) -> float:
        return step(instance(llama, gpu), 1, 60_000, kv_format) - step(instance(llama, gpu), 1, 1, kv_format)

    assert attention("A10G", "raw") / attention("A10G", "k4v2") > 2.5
    assert 0.8 < attention("H200", "raw") / attention("H200", "k4v2") < 1.2
    assert attention("L4", "k4v2") < attention("L4", "k4v4") < attention("L4", "k8v8") < attention("L4", "raw")


@pytest.mark.parametrize("gpu", sorted(known_devices()))
@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_more_work_never_takes_less_time(llama: ModelShape, gpu: str, kv_format: str) -> None:
    for tp in (1, 2, 8):
        of = instance(llama, gpu, tp)
        prompts = of.prefill_seconds(np.arange(1.0, 4000, 37))
        assert np.all(np.diff(prompts) >= 0)
        batches = np.arange(1.0, 257)
        assert np.all(np.diff(of.step_seconds(batches, batches * 700, kv_format)) > 0)
        assert np.all(np.diff(batches / of.step_seconds(batches, batches * 700, kv_format)) > -1e-9), "throughput"


def test_tensor_parallelism_is_faster_but_not_for_free(llama: ModelShape) -> None:
    alone, pair = instance(llama, "A100-80GB"), instance(llama, "A100-80GB", tp=2)
    assert step(alone, 32, 2000) / 2 < step(pair, 32, 2000) < step(alone, 32, 2000)
    slow_wires = Instance(llama, replace_interconnect("A100-80GB", 1.0), 8, ASSUME)
    assert slow_wires.prefill_seconds(MANY * 100)[0] > alone.prefill_seconds(MANY * 100)[0]


def replace_interconnect(gpu: str, gb_per_s: float) -> object:
    return known_devices()[gpu].model_copy(update={"interconnect_gb_per_s": gb_per_s})


def test_a_prior_is_near_the_roofline(llama: ModelShape) -> None:
    for gpu, tp in (("H100", 1), ("A10G", 1), ("T4", 2)):
        of = instance(llama, gpu, tp)
        prior = worker_prior(of, "k4v2", nic_gbps=40)
        tokens = np.array([64.0, 512, 2048, 8192])
        fitted = np.stack([np.ones(4), tokens, tokens**2], axis=1) @ np.array(prior.prefill)
        assert fitted == pytest.approx(of.prefill_seconds(tokens), rel=0.25)
        batch = np.array([1.0, 8, 64])
        steps = np.stack([np.ones(3), batch * 1000, batch], axis=1) @ np.array(prior.decode)
        assert steps == pytest.approx(of.step_seconds(batch, batch * 1000, "k4v2"), rel=0.35)
        assert prior.transfer[1] == pytest.approx(8 / 40e9 / 0.8)


def test_assumptions_refuse_shares_that_are_none() -> None:
    with pytest.raises(ValueError, match="prefill_flops"):
        Assumptions(prefill_flops=1.5)
