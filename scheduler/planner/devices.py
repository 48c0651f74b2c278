"""The GPUs that the planner knows: figures of the makers' public data sheets, each with its source, in devices.json.

Rates are dense (without sparsity). Knows nothing of models or of what share of these figures is reached (assumptions.py).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_FILE = Path(__file__).parent / "devices.json"


class Device(BaseModel):
    """One kind of GPU. Gigabytes are 10^9 bytes; `interconnect_gb_per_s` is between two GPUs of a machine, per direction.

    `nic_gbps` is of `instance`, a typical cloud machine with `instance_gpus` of them. Without `int8_tops` the codes are computed
    on at the 16-bit rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    memory_gb: float = Field(gt=0)
    bandwidth_gb_per_s: float = Field(gt=0)
    fp16_tflops: float = Field(gt=0)
    int8_tops: float | None = Field(default=None, gt=0)
    sms: int = Field(ge=1, description="multiprocessors")
    boost_ghz: float = Field(gt=0)
    interconnect_gb_per_s: float = Field(gt=0)
    bf16: bool = True
    instance: str = ""
    instance_gpus: int = Field(default=1, ge=1)
    nic_gbps: float = Field(gt=0)

    @property
    def codes_tops(self) -> float:
        """Rate of attention on codes: the integer rate where it is the higher one."""
        return max(self.int8_tops or 0.0, self.fp16_tflops)

    def typical_nic_gbps(self, gpus: int) -> float:
        """The share of the typical instance's network that `gpus` of its GPUs have."""
        return self.nic_gbps * min(1.0, gpus / self.instance_gpus)


@cache
def known_devices() -> dict[str, Device]:
    """The devices of devices.json, by name."""
    return {
        name: Device(**{figure: entry["value"] for figure, entry in figures.items()})
        for name, figures in _data()["devices"].items()
    }


def device_named(name: str) -> str | None:
    """The known device that a driver calls `name`; None for any other, such as a CPU, an AMD GPU or a part of a GPU (MIG).

    Older drivers leave the maker's name out, so it does not count. A card that is up to a tenth slower than a device's data sheet (the
    PCIe variants) counts as that device.
    """
    names: dict[str, str] = _data()["names"]
    return next((device for known, device in names.items() if _without_maker(known) == _without_maker(name)), None)


def driver_name(device: Device) -> str:
    """What a driver calls the known device; empty for one that is not known, such as a cluster file's own."""
    names: dict[str, str] = _data()["names"]
    return next((known for known, name in names.items() if known_devices()[name] == device), "")


def sources(name: str) -> dict[str, str]:
    """Where each figure of a known device comes from."""
    data = _data()
    return {figure: data["sources"][entry["source"]] for figure, entry in data["devices"][name].items()}


@cache
def _data() -> Any:
    return json.loads(_FILE.read_text(encoding="utf-8"))


def _without_maker(name: str) -> str:
    return name.removeprefix("NVIDIA ").removeprefix("Tesla ")
