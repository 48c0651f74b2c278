"""The two ends of what can be known of a length: all of it, and none."""

from __future__ import annotations

from collections.abc import Sequence

from packhorse.errors import ConfigError

from .base import JobFeatures, Observation, Prediction, Predictor


class _Fixed(Predictor):
    """Learns nothing, and so keeps nothing that it is told."""

    def observe(self, job: JobFeatures, tokens: int, truncated: bool | None = None) -> None:
        return

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        return


class Oracle(_Fixed):
    """The truth, where the job brings it (in simulations): the upper bound. Raises ConfigError where it does not."""

    name = "oracle"

    def predict(self, job: JobFeatures) -> Prediction:
        if job.actual_tokens is None:
            raise ConfigError(
                "predictor=oracle: needs jobs whose length is known beforehand, as in a simulation", param="predictor"
            )
        return Prediction.certain(job.actual_tokens, self.name)


class NoPredictor(_Fixed):
    """Every job may come to its limit, and none is known to be shorter than another."""

    name = "none"

    def predict(self, job: JobFeatures) -> Prediction:
        known = Prediction.certain(job.max_tokens, self.name)
        return Prediction(known.lengths, known.mean, 0.0, self.name)
