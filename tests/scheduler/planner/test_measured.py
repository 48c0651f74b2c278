"""The roofline's decode steps against measured ones: vLLM 0.19 with Llama-3.1-8B on one RTX 4090, one-second averages."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from scheduler.planner import Device, Instance, ModelShape
from scheduler.planner.assumptions import Assumptions

# NVIDIA Ada GPU architecture whitepaper; the memory is what the run's own record says.
RTX_4090 = Device(
    memory_gb=25.25, bandwidth_gb_per_s=1008, fp16_tflops=165, int8_tops=330, sms=128, boost_ghz=2.52, interconnect_gb_per_s=32, nic_gbps=25
)  # fmt: skip
NO_LAUNCHES = Assumptions(layer_seconds=0.0)  # vLLM replays CUDA graphs


@pytest.mark.skipif("PACKHORSE_DATA" not in os.environ, reason="PACKHORSE_DATA is not set")
def test_decode_steps_at_a_full_cache(llama: ModelShape, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.environ["PACKHORSE_DATA"]) / "traces" / "vllm_measured_rtx4090"
    capacity = json.loads((folder / "meta.json").read_text())["kv_cache"]["num_kv_tokens"]
    instance = Instance(llama, RTX_4090, 1, NO_LAUNCHES)
    measured, predicted = [], []
    with (folder / "timeseries.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            batch, rate, held = float(row["running"]), float(row["gen_throughput"]), float(row["kv_cache_pct"]) / 100
            if float(row["prompt_throughput"]) == 0 and rate > 0 and held > 0.9:  # no prefill beside it
                measured.append(batch / rate)
                predicted.append(float(instance.step_seconds(np.array([batch]), np.array([held * capacity]), "raw")[0]))
    ratio = float(np.median(np.array(predicted) / np.array(measured)))
    with capsys.disabled():
        middle = np.median(measured) * 1e3
        print(f"\n{len(measured)} seconds of decoding: median step {middle:.1f} ms, predicted / measured {ratio:.3f}")
    assert len(measured) > 50
    assert ratio == pytest.approx(1.0, abs=0.10)
