"""Choosing one option for every machine so that the smaller of two sums is largest, and the second-best choice.

The goodput grows with both sums, so a partial choice that two others beat can be in neither of the two best plans: dropping it loses
nothing, and the search stays exhaustive. Of choices with equal sums one stands for all, the one with the fewest kinds of machines.
Machines that are alike are chosen for as a group, by how many of them take which option, so that no plan is seen twice with names
exchanged. Knows nothing of GPUs or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

KEPT = 2  # plans: the best and the runner-up
UNITS = 10**12  # flows are whole numbers; the largest sum that there could be is UNITS
EQUAL = 10**4  # sums that differ by less are equal: the order of rounding made the difference


class Choice(NamedTuple):
    """Sums over the machines so far, in whole numbers. `counts` holds (group, option, machines that take it)."""

    prefill: int
    decode: int
    counts: tuple[tuple[int, int, int], ...] = ()

    @property
    def order(self) -> tuple[int, int]:
        """Better is larger: the smaller sum, then the other one."""
        return min(self.prefill, self.decode), max(self.prefill, self.decode)


def best_choices(groups: Sequence[tuple[int, Sequence[tuple[float, float]]]]) -> list[Choice]:
    """The best choice and the runner-up. A group is (machines, flows of each option as (prefill, decode))."""
    largest = sum(machines * max(map(max, flows)) for machines, flows in groups) or 1.0
    total = [Choice(0, 0)]
    for number, (machines, flows) in enumerate(groups):
        whole = [(round(p / largest * UNITS), round(d / largest * UNITS)) for p, d in flows]
        group = _group_choices(number, machines, whole)
        total = _keep(Choice(p + q, d + e, c + f) for p, d, c in total for q, e, f in group)
    return sorted(total, key=lambda choice: choice.order, reverse=True)[:KEPT]


def _group_choices(number: int, machines: int, flows: Sequence[tuple[int, int]]) -> list[Choice]:
    """All ways to give `machines` alike machines an option each, less those that cannot matter."""
    by_count: list[list[Choice]] = [[Choice(0, 0)]] + [[] for _ in range(machines)]
    single = _keep(Choice(*sums, ((number, option, 1),)) for option, sums in enumerate(flows))
    for one in single:
        for used in range(1, machines + 1):
            by_count[used] = _keep([*by_count[used], *(_one_more(choice, one) for choice in by_count[used - 1])])
    return by_count[machines]


def _one_more(choice: Choice, one: Choice) -> Choice:
    """`choice` and a machine more that takes the option of `one`."""
    (group, option, _), last = one.counts[0], choice.counts[-1:]
    again = last and last[0][1] == option
    counts = (*choice.counts[:-1], (group, option, last[0][2] + 1)) if again else choice.counts + one.counts
    return Choice(choice.prefill + one.prefill, choice.decode + one.decode, counts)


def _keep(choices: Iterable[Choice]) -> list[Choice]:
    """Those that fewer than KEPT others, of different sums, match or beat in both."""
    kept: list[Choice] = []
    highest = [-EQUAL] * KEPT  # decode sums of the choices before, which have the larger prefill sums; largest first
    for choice in sorted(choices, key=lambda choice: (-choice[0], -choice[1], len(choice[2]))):
        if choice[1] >= highest[-1] + EQUAL and not any(_equal(choice, other) for other in kept[-KEPT:]):
            kept.append(choice)
            highest = sorted([*highest, choice[1]], reverse=True)[:KEPT]
    return kept


def _equal(one: Choice, other: Choice) -> bool:
    return abs(one[0] - other[0]) < EQUAL and abs(one[1] - other[1]) < EQUAL
