"""On the lengths that a real model answered at. The whole comparison is `packhorse bench predictors`; this is a small part of it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from bench.predictors import PredictorOptions, held_out, read_lengths

pytestmark = pytest.mark.skipif("PACKHORSE_DATA" not in os.environ, reason="PACKHORSE_DATA is not set")


def test_learned_beats_recent_traffic_on_prompts_held_out() -> None:
    options = PredictorOptions(folds=1, tokens="words")
    data = read_lengths(options)
    data = replace(data, jobs=data.jobs[:3000], lengths=data.lengths[:3000], again=data.again[:3000])
    learned, percentile = (held_out(name, data, options) for name in ("learned", "percentile"))
    assert 0.45 < learned["tau"] < 0.72, "more than 0.72 would be leakage"
    assert learned["mae"] < 0.8 * percentile["mae"]
    assert 0.7 < learned["cover_p10_p90"] < 0.9
