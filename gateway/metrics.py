"""Prometheus metrics of one gateway: its own requests, and the cluster as the scheduler last described it.

Every gateway has a registry of its own. What concerns the cluster is read from the newest Status at each scrape, so a worker
that is gone leaves no series behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from transport.messages import JobStats, PredictionErrors, Status, WorkerStatus

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
PHASE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Counters and histograms that the endpoints feed; `render()` is the text for a scrape."""

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"packhorse_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"packhorse_{name}_seconds", text, buckets=buckets, registry=registry)

        self.requests = counter("requests", "HTTP requests, by endpoint and status", "endpoint", "status")
        self.errors = counter("errors", "Errors that clients saw, in a response or in a stream, by code", "code")
        self.cancelled = counter("cancelled", "Requests whose client left before the end")
        self.in_flight = Gauge("packhorse_requests_in_flight", "Requests being answered", registry=registry)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self.completion_tokens = counter("completion_tokens", "Tokens generated")
        self.bytes_shipped = counter("bytes_shipped", "Bytes of KV cache sent from prefill to decode")
        self.bytes_held = counter("bytes_held", "Bytes of prompt pages not sent, since the decode worker held them")
        self.raw_bytes = counter("raw_bytes", "What bytes_shipped would have been as 16-bit values, with nothing held")
        self.ttft = histogram("ttft", "Request to first token, per choice", PHASE_SECONDS)
        self.itl = histogram("itl", "Between two tokens of a choice", TOKEN_SECONDS)
        self.jct = histogram("jct", "Request to last token", REQUEST_SECONDS)
        self.queue = histogram("queue", "A job's wait for its workers", PHASE_SECONDS)
        self.prefill = histogram("prefill", "A job's prefill", PHASE_SECONDS)
        self.ship = histogram("ship", "End of a job's prefill to the decode side's acknowledgement", PHASE_SECONDS)
        registry.register(ClusterCollector(status))

    def observe_job(self, stats: JobStats) -> None:
        """A job whose last token came, by the statistics that came with it."""
        self.prompt_tokens.inc(stats.prompt_tokens)
        self.bytes_shipped.inc(stats.bytes_shipped)
        self.bytes_held.inc(stats.bytes_held)
        self.raw_bytes.inc(stats.raw_bytes)
        self.queue.observe(stats.queue_seconds)
        self.prefill.observe(stats.prefill_seconds)

    def observe_end(self, stats: JobStats) -> None:
        """A job that the scheduler says has ended: by then the prefill worker has told how long shipping took."""
        if stats.decode_worker:
            self.ship.observe(stats.ship_seconds)

    def render(self) -> bytes:
        return generate_latest(self._registry)


class ClusterCollector(Collector):
    """Turns the scheduler's Status into metrics; None, when the scheduler is lost, into `packhorse_scheduler_up 0`."""

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily(
            "packhorse_scheduler_up", "Whether the scheduler answers", value=float(status is not None)
        )
        if status is not None:
            yield from _scheduler_metrics(status)
            yield from _worker_metrics(status.workers)


def _scheduler_metrics(status: Status) -> Iterator[Metric]:
    roles = GaugeMetricFamily("packhorse_workers", "Registered workers", labels=["role"])
    for role in ("prefill", "decode"):
        roles.add_metric([role], sum(worker.info.role == role for worker in status.workers))
    yield roles
    states = GaugeMetricFamily("packhorse_jobs", "Jobs that the scheduler tracks", labels=["state"])
    for state, count in status.jobs_by_state.items():
        states.add_metric([state], count)
    yield states
    outcomes = CounterMetricFamily("packhorse_jobs_ended", "Jobs that are over", labels=["outcome"])
    for outcome, count in status.jobs_total.items():
        outcomes.add_metric([outcome], count)
    yield outcomes
    yield GaugeMetricFamily(
        "packhorse_queue_oldest_seconds",
        "Wait of the job that waits longest for its workers",
        value=status.queue_seconds,
    )
    yield CounterMetricFamily(
        "packhorse_preemptions",
        "Jobs stopped on decode workers, for others or to give memory back in a tool pause",
        value=status.preemptions_total,
    )
    yield from _prediction_metrics(status.predictions)


def _prediction_metrics(predictions: Mapping[str, PredictionErrors]) -> Iterator[Metric]:
    """Kinds of which nothing was predicted yet have no series."""
    total = CounterMetricFamily("packhorse_predictions", "Predictions that could be checked", labels=["kind"])
    text = "(predicted - actual) / actual of the newest predictions: bias is the median, p50 and p90 are of the absolute error"
    error = GaugeMetricFamily("packhorse_prediction_error", text, labels=["kind", "of"])
    for kind, errors in predictions.items():
        if errors.count:
            total.add_metric([kind], errors.total)
            for name, value in (("bias", errors.bias), ("p50", errors.p50), ("p90", errors.p90)):
                error.add_metric([kind, name], value)
    yield total
    yield error


_WORKER_GAUGES: tuple[tuple[str, str, Callable[[WorkerStatus], float]], ...] = (
    ("jobs", "Jobs placed on the worker", lambda worker: worker.jobs),
    ("reserved_pages", "Pages that the scheduler has reserved", lambda worker: worker.reserved_pages),
    ("used_pages", "Pages in use, by the worker's own count", lambda worker: worker.load.pages_used),
    ("cached_pages", "Pages of ended jobs kept for their prefixes", lambda worker: worker.load.pages_cached),
    ("capacity_pages", "Pages in the pool", lambda worker: worker.info.capacity_pages),
    ("used_host_pages", "Pages of preempted jobs in host memory", lambda worker: worker.load.host_pages_used),
    ("host_pages", "Pages of preempted jobs that host memory may hold", lambda worker: worker.info.host_pages),
    ("used_residuals", "Residual buffers in use", lambda worker: worker.load.residuals_used),
    ("leases", "Page streams not yet acknowledged", lambda worker: worker.load.leases),
    ("lease_bytes", "Bytes of page streams not yet acknowledged", lambda worker: worker.load.lease_bytes),
    ("links", "Open data links", lambda worker: worker.load.links),
    ("link_bytes_per_second", "Measured on the newest stream", lambda worker: worker.load.link_bytes_per_second),
    ("tokens_per_second", "Tokens generated", lambda worker: worker.load.tokens_per_second),
    ("heartbeat_age_seconds", "Since the last heartbeat", lambda worker: worker.heartbeat_age_seconds),
)


def _worker_metrics(workers: Iterable[WorkerStatus]) -> Iterator[Metric]:
    for name, text, read in _WORKER_GAUGES:
        family = GaugeMetricFamily(f"packhorse_worker_{name}", text, labels=["worker", "role"])
        for worker in workers:
            family.add_metric([worker.info.worker_id, worker.info.role], read(worker))
        yield family
