"""Shapes, clusters and workloads that the planner's tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scheduler.planner import Cluster, Machine, ModelShape, known_devices, read_shape

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def llama() -> ModelShape:
    return read_shape(ROOT / "examples" / "models" / "llama-3.1-8b.json")


@pytest.fixture(scope="session")
def clusters() -> Path:
    return ROOT / "examples" / "clusters"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file under a name and gives its path."""

    def write(text: str, name: str = "file.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def machine(name: str, gpu: str, gpus: int, nic_gbps: float | None = None) -> Machine:
    device = known_devices()[gpu]
    return Machine(name, name, gpu, device, gpus, nic_gbps or device.typical_nic_gbps(gpus))


@pytest.fixture
def cluster() -> Callable[..., Cluster]:
    """A cluster of (gpu, gpus[, nic_gbps]) machines."""
    return lambda *entries: Cluster(tuple(machine(f"m{i}", *entry) for i, entry in enumerate(entries)))
