"""A decode worker with a length probe: the scheduler's forecast follows its scores, and the tokens are the same as without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.length_probe import LengthProbe
from model.loader import load_model
from packhorse.config import DecodeConfig
from packhorse.errors import ConfigError
from tests.e2e.conftest import MakeSystem
from tests.gates import gate_of
from tests.waiting import until

PROMPT = [5 + i % 900 for i in range(70)]
MAX_TOKENS = 300


def write_probe(path: Path, favoured: int) -> None:
    """Of 10 bins over 0 to 200 the probe believes in one, whatever the state."""
    model = load_model("embedded")
    bias = torch.zeros(10)
    bias[favoured] = 5.0
    zeros = torch.zeros(4, model.hidden_size), torch.zeros(4), torch.zeros(10, 4)
    LengthProbe(*zeros, bias, span_tokens=200).save(path, model.info.revision)


@pytest.mark.parametrize(("favoured", "remaining"), [(0, (1, 20)), (5, (100, 120))])
async def test_the_forecast_follows_the_scores(
    system: MakeSystem, tmp_path: Path, favoured: int, remaining: tuple[float, float]
) -> None:
    path = tmp_path / "probe.safetensors"
    write_probe(path, favoured)
    async with system() as s:
        expected = [output.token_id for output in await s.client.run(PROMPT, max_tokens=MAX_TOKENS)]
    scheduler = {"policy": "packhorse", "heartbeat_seconds": 0.02}
    async with system(decode={"length_probe": str(path)}, scheduler=scheduler) as s:
        job = s.client.job(PROMPT, max_tokens=MAX_TOKENS)
        gate = gate_of(s.decodes[0])
        gate.hold(job.job_id, 60)
        await s.client.submit(job)
        tracked = s.scheduler.core.jobs
        await until(lambda: job.job_id in tracked and tracked[job.job_id].forecast.least > 40)
        forecast = tracked[job.job_id].forecast
        low, high = remaining
        assert low <= forecast.remaining(0.5, int(forecast.least)) <= high
        gate.let_go(job.job_id)
        await s.client.end(job.job_id)
        outputs = await s.client.tokens(job.job_id, complete=True)
    assert [output.token_id for output in outputs] == expected


async def test_a_probe_that_cannot_be_had_stops_the_worker_at_its_start(system: MakeSystem, tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    assert DecodeConfig().length_probe is None
    with pytest.raises(ConfigError, match=f"length_probe={path}: cannot be read"):
        async with system(decode={"length_probe": str(path)}):
            raise AssertionError("it started")
