"""A core with one worker of each role."""

from __future__ import annotations

import pytest

from tests.scheduler.fakes import Bench, decode_info, prefill_info


@pytest.fixture
def bench() -> Bench:
    return Bench(prefill_info("p1"), decode_info("d1"))
