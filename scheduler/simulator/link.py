"""Simulated ports, of networks and between device and host, and the page streams that cross them. Knows nothing of workers or messages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Port:
    """One direction of an interface: `bytes_per_second`, taken by one stream after the other."""

    bytes_per_second: float
    free_at: float = 0.0
    bytes_total: int = 0

    def copy(self, num_bytes: int, now: float) -> float:
        """When `num_bytes` that are ready now have gone through, after all that came before."""
        self.free_at = max(now, self.free_at) + num_bytes / self.bytes_per_second
        self.bytes_total += num_bytes
        return self.free_at


def ship(source: Port, target: Port, num_bytes: int, ready_at: float, done_at: float, last_bytes: int) -> float:
    """When the last of `num_bytes` has arrived; takes each port for as long as the bytes need of it.

    Streams to several receivers share the sender's port and do not wait for each other's receivers: live, each has a connection of its own.
    The bytes become ready evenly from `ready_at` (the first layer of the first chunk) to `done_at` (the end of prefill), so that
    shipping overlaps prefill: what cannot overlap are the `last_bytes`, those of the last layer of the last chunk.
    """
    through = max(port.copy(num_bytes, ready_at) for port in (source, target))
    return max(through, done_at + last_bytes / min(source.bytes_per_second, target.bytes_per_second))
