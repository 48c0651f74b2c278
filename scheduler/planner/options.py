"""What one machine can be: its GPUs split into prefill and decode instances, each with a tensor-parallel degree.

Every split is tried: both degrees, every number of prefill instances, the rest decode. A split counts by two flows: how many requests
per second the machine prefills and how many it decodes, its NIC included. Jobs that are prefilled and decoded on the same machine
do not cross the NIC, so with P and D the machine's rates and N what the NIC carries,

    prefill flow = min(P, D) + min(P - D, N)    where P > D, else P;    the decode flow likewise.

The cluster's goodput is then min(sum of prefill flows, sum of decode flows): the maximal flow of the bipartite network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from .cluster import Machine
from .cost import GIGA, Instance, PageSizes
from .model_shape import ModelShape
from .rates import DecodeRate, Demand, PrefillRate, Slo, decode_rate, prefill_rate

TP_DEGREES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Option:
    """One split. Rates are of all instances together; `prefill` and `decode` are those of one instance, None without any."""

    prefills: int
    prefill_tp: int
    decodes: int
    decode_tp: int
    prefill: PrefillRate | None
    decode: DecodeRate | None
    prefill_flow: float
    decode_flow: float

    @property
    def serves(self) -> bool:
        """Whether it has instances, and none that cannot do its part. GPUs that are too few for one stay idle in another split."""
        working = self.prefill_rate > 0 or not self.prefills, self.decode_rate > 0 or not self.decodes
        return all(working) and self.prefill_flow + self.decode_flow > 0

    @property
    def prefill_rate(self) -> float:
        return self.prefills * self.prefill.rate if self.prefill else 0.0

    @property
    def decode_rate(self) -> float:
        return self.decodes * self.decode.rate if self.decode else 0.0


@dataclass(frozen=True, eq=False)
class Problem:
    """What is planned for, in one KV format. `tpot_seconds` is what the SLO leaves of TPOT for the decode step.

    Tensor parallelism goes up to `max_tp`. Machines with a NIC below `least_nic_gbps` decode what they prefill, and nothing else.
    """

    model: ModelShape
    demand: Demand
    slo: Slo
    kv_format: str
    tpot_seconds: float | None
    max_tp: int = TP_DEGREES[-1]
    least_nic_gbps: float = 0.0

    def crosses(self, machine: Machine) -> bool:
        """Whether jobs may go from the machine to another one, or come from there."""
        return machine.nic_gbps >= self.least_nic_gbps

    @property
    def sizes(self) -> PageSizes:
        return PageSizes(self.model, self.kv_format)


class Options:
    """The options of machines, computed once for machines that are alike."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._prefill = cache(self._prefill_rate)
        self._decode = cache(self._decode_rate)

    def instance(self, machine: Machine, tp: int) -> Instance:
        return Instance(self.problem.model, machine.device, tp, machine.assume)

    def of(self, machine: Machine) -> list[Option]:
        """All options whose instances serve something, each of them; one without instances where there is no other."""
        nic = machine.nic_gbps * GIGA / 8 * machine.assume.nic_share if self.problem.crosses(machine) else 0.0
        carried = nic / self.problem.demand.mean_shipped_bytes(self.problem.sizes)
        found = [self._option(machine, split, carried) for split in splits(machine.gpus, self._degrees(machine))]
        useful = [option for option in found if option.serves]
        return useful or [Option(0, 1, 0, 1, None, None, 0.0, 0.0)]

    def refusals(self, machine: Machine) -> tuple[str, str]:
        """Why no split of the machine prefills, and why none decodes: the reasons at the highest degree."""
        tp = max(self._degrees(machine))
        return self._prefill(machine, tp).limit, self._decode(machine, tp).limit

    def _degrees(self, machine: Machine) -> list[int]:
        """Tensor-parallel degrees within the machine that split the heads evenly."""
        most = min(machine.gpus, self.problem.max_tp)
        return [tp for tp in TP_DEGREES if tp <= most and self.problem.model.heads % tp == 0]

    def _option(self, machine: Machine, split: tuple[int, int, int, int], carried: float) -> Option:
        prefills, prefill_tp, decodes, decode_tp = split
        prefill = self._prefill(machine, prefill_tp) if prefills else None
        decode = self._decode(machine, decode_tp) if decodes else None
        into, out = prefills * prefill.rate if prefill else 0.0, decodes * decode.rate if decode else 0.0
        local = min(into, out)
        return Option(
            *split,
            prefill,
            decode,
            local + min(max(into - out, 0.0), carried),
            local + min(max(out - into, 0.0), carried),
        )

    def _prefill_rate(self, machine: Machine, tp: int) -> PrefillRate:
        return prefill_rate(self.instance(machine, tp), self.problem.demand, self.problem.slo)

    def _decode_rate(self, machine: Machine, tp: int) -> DecodeRate:
        problem = self.problem
        return decode_rate(self.instance(machine, tp), problem.demand, problem.kv_format, problem.tpot_seconds)


def splits(gpus: int, degrees: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """(prefills, their degree, decodes, their degree); a role without instances has degree 1. GPUs may stay idle."""
    for prefill_tp in degrees:
        for prefills in range(gpus // prefill_tp + 1):
            if prefills == 0 and prefill_tp > 1:
                continue
            left = gpus - prefills * prefill_tp
            for decode_tp in degrees:
                if left >= decode_tp:
                    yield prefills, prefill_tp, left // decode_tp, decode_tp
            if prefills and left < prefill_tp:
                yield prefills, prefill_tp, 0, 1
