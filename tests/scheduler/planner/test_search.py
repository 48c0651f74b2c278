"""The search against brute force, the SLOs, the network, the limits of memory, and its time on sixteen machines."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from packhorse.errors import ConfigError
from scheduler.planner import (
    Cluster,
    ModelShape,
    Plan,
    PlanResult,
    Slo,
    Workload,
    as_data,
    frontier,
    load_workload,
    render,
    search,
)
from scheduler.planner.frontier import Choice, best_choices
from scheduler.planner.options import splits
from scheduler.planner.rates import Demand, prefill_rate, ttft_quantile

MakeCluster = Callable[..., Cluster]
CHAT = load_workload("1024:256")
SLO = Slo(ttft_seconds=2.0, tpot_seconds=0.1)


def split_of(plan: Plan) -> list[tuple[int, int, int, int]]:
    return [
        (each.option.prefills, each.option.prefill_tp, each.option.decodes, each.option.decode_tp)
        for each in plan.assignments
    ]


def brute_force(groups: list[tuple[int, list[tuple[float, float]]]]) -> list[float]:
    """The goodputs of all plans, largest first, plans of equal sums once."""
    machines = [flows for count, flows in groups for _ in range(count)]
    sums = {
        (round(sum(p for p, _ in chosen), 6), round(sum(d for _, d in chosen), 6))
        for chosen in itertools.product(*machines)
    }
    return sorted((min(pair) for pair in sums), reverse=True)


@pytest.mark.parametrize("seed", range(40))
def test_the_two_best_choices_are_those_of_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    groups = [
        (
            rng.randint(1, 3),
            [(rng.choice([0, rng.random(), 1]), rng.choice([0, rng.random(), 1])) for _ in range(rng.randint(1, 5))],
        )
        for _ in range(rng.randint(1, 3))
    ]
    found = [goodput(choice, groups) for choice in best_choices(groups)]
    assert found == pytest.approx(brute_force(groups)[:2], abs=1e-5)


def goodput(choice: Choice, groups: list[tuple[int, list[tuple[float, float]]]]) -> float:
    taken = [(count, groups[group][1][option]) for group, option, count in choice.counts]
    assert sum(count for count, _ in taken) == sum(machines for machines, _ in groups)
    return min(sum(count * flows[side] for count, flows in taken) for side in (0, 1))


def test_small_flows_are_told_apart_as_large_ones_are() -> None:
    for scale in (1e-9, 1.0, 1e9):
        found = best_choices([(2, [(1.0 * scale, 1.01 * scale), (1.0 * scale, 1.02 * scale)])])
        assert [sorted(choice.counts) for choice in found] == [[(0, 1, 2)], [(0, 0, 1), (0, 1, 1)]]


def test_a_choice_says_who_takes_what() -> None:
    best = best_choices([(3, [(1.0, 0.0), (0.0, 2.0)]), (1, [(5.0, 5.0)])])[0]
    taken: dict[tuple[int, int], int] = {}
    for group, option, count in best.counts:
        taken[group, option] = taken.get((group, option), 0) + count
    assert taken == {(0, 0): 2, (0, 1): 1, (1, 0): 1}


def test_every_split_of_a_machine_is_tried_once() -> None:
    found = list(splits(4, [1, 2, 4]))
    assert len(found) == len(set(found))
    assert {(4, 1, 0, 1), (0, 1, 4, 1), (2, 1, 1, 2), (1, 2, 2, 1), (1, 4, 0, 1), (0, 1, 1, 4), (3, 1, 1, 1)} <= set(
        found
    )
    assert all(p * tp + d * tp2 <= 4 for p, tp, d, tp2 in found)


def test_strong_compute_prefills_and_scarce_compute_decodes(llama: ModelShape, cluster: MakeCluster) -> None:
    best = search(cluster(("A100-80GB", 4), ("A10G", 4)), llama, load_workload("4096:256"), SLO).best
    strong, weak = best.assignments
    assert (strong.option.prefills, strong.option.decodes) == (4, 0)
    assert weak.option.decode_flow == best.decode_flow


def test_machines_that_are_alike_can_be_exchanged(llama: ModelShape, cluster: MakeCluster) -> None:
    one = search(cluster(("A10G", 4), ("T4", 4), ("A10G", 4)), llama, CHAT, SLO).best
    other = search(cluster(("T4", 4), ("A10G", 4), ("A10G", 4)), llama, CHAT, SLO).best
    assert one.goodput == pytest.approx(other.goodput)
    assert sorted(split_of(one)) == sorted(split_of(other))


def test_the_runner_up_is_another_plan_and_no_better(llama: ModelShape, cluster: MakeCluster) -> None:
    found = search(cluster(("A100-80GB", 4), ("A10G", 4)), llama, CHAT, SLO)
    assert found.runner_up is not None
    assert split_of(found.runner_up) != split_of(found.best)
    assert found.runner_up.goodput <= found.best.goodput
    alone = search(cluster(("A100-80GB", 2)), llama, CHAT, Slo(), max_tp=1)
    assert (split_of(alone.best), alone.runner_up) == ([(1, 1, 1, 1)], None)


def test_goodput_is_the_smaller_side_and_slos_only_take(llama: ModelShape, cluster: MakeCluster) -> None:
    described = cluster(("A100-80GB", 4), ("L4", 4))
    free = search(described, llama, CHAT, Slo()).best
    assert free.goodput == min(free.prefill_flow, free.decode_flow)
    last = free.goodput
    for ttft, tpot in ((5.0, 0.1), (2.0, 0.06), (1.0, 0.04)):
        limited = search(described, llama, CHAT, Slo(ttft, tpot)).best
        assert limited.goodput <= last + 1e-9
        assert limited.ttft_seconds <= ttft * 1.001
        assert limited.tpot_seconds <= tpot
        last = limited.goodput


def test_an_slo_that_nobody_meets_says_who_fails_and_why(llama: ModelShape, cluster: MakeCluster) -> None:
    described = cluster(("L4", 4))
    with pytest.raises(
        ConfigError, match=r"m0 \(4 x L4\) cannot prefill: prompts alone take longer than the TTFT limit"
    ):
        search(described, llama, CHAT, Slo(ttft_seconds=0.01))
    with pytest.raises(ConfigError, match="cannot decode: a step of one sequence takes longer than the TPOT limit"):
        search(described, llama, CHAT, Slo(tpot_seconds=0.001))


def test_a_format_without_pages_for_the_heads_is_left_out_and_alone_refused(
    llama: ModelShape, cluster: MakeCluster
) -> None:
    odd, machines = replace(llama, head_dim=100), cluster(("A100-80GB", 2))
    found = search(machines, odd, CHAT, Slo(), ("raw", "k4v2"))
    assert [plan.kv_format for plan in found.formats] == ["raw"]
    assert "head_dim=100 with k4v2: K's codes do not fill words" in found.notes[0]
    with pytest.raises(ConfigError, match="head_dim=100 with k4v2"):
        search(machines, odd, CHAT, Slo(), ("k4v2",))


def test_a_model_that_fits_nowhere_says_so(llama: ModelShape, cluster: MakeCluster) -> None:
    with pytest.raises(
        ConfigError, match="cannot prefill: the weights do not fit and cannot decode: the weights do not fit"
    ):
        search(cluster(("T4", 1), ("T4", 1)), llama, CHAT, Slo())
    with pytest.raises(ConfigError, match="has 200010 tokens"):
        search(cluster(("T4", 4)), llama, load_workload("200000:10"), Slo())
    with pytest.raises(ConfigError, match="token 1 ends every request"):
        search(cluster(("T4", 4)), llama, load_workload("100:1"), Slo())
    with pytest.raises(ConfigError, match="'k3v3' is unknown; allowed: raw, k8v8"):
        search(cluster(("T4", 4)), llama, CHAT, Slo(), ["k3v3"])


def test_one_gpu_cannot_be_both(llama: ModelShape, cluster: MakeCluster) -> None:
    with pytest.raises(ConfigError, match="is too few"):
        search(cluster(("A100-80GB", 1)), llama, CHAT, Slo())


def test_small_gpus_need_tensor_parallelism(llama: ModelShape, cluster: MakeCluster) -> None:
    found = search(cluster(("T4", 4)), llama, CHAT, Slo()).best
    assert found.assignments[0].option.prefill_tp == found.assignments[0].option.decode_tp == 2
    with pytest.raises(ConfigError, match="the weights do not fit"):
        search(cluster(("T4", 4)), llama, CHAT, Slo(), max_tp=1)


def test_a_slow_network_binds_and_packed_pages_cross_it(llama: ModelShape, cluster: MakeCluster) -> None:
    slow = cluster(("H100", 1, 1.0), ("H100", 1, 1.0))
    found = {
        plan.kv_format: plan for plan in search(slow, llama, load_workload("8000:200"), Slo(), ["raw", "k4v2"]).formats
    }
    carried = 1e9 / 8 * 0.8
    for plan in found.values():
        assert plan.goodput == pytest.approx(carried / plan.shipped_bytes)
        assert plan.prefill_rate > plan.prefill_flow
        assert plan.exposed_seconds > 0
    assert found["k4v2"].goodput / found["raw"].goodput > 4
    local = search(cluster(("H100", 2, 1.0)), llama, load_workload("8000:200"), Slo(), ["raw"]).best
    assert local.goodput > 5 * found["raw"].goodput, "pages that stay on the machine do not cross its NIC"
    assert local.exposed_seconds == 0


def test_a_transfer_after_token_1_counts_against_tpot(llama: ModelShape, cluster: MakeCluster) -> None:
    slow, fast = cluster(("H100", 1, 12.0), ("H100", 1, 12.0)), cluster(("H100", 1, 400.0), ("H100", 1, 400.0))
    long_prompts = load_workload("30000:100")
    for limit in (0.06, 0.04):
        plan = search(slow, llama, long_prompts, Slo(tpot_seconds=limit), ["raw"]).best
        assert plan.tpot_seconds <= limit
        assert plan.exposed_seconds / 99 > 0.01
    with pytest.raises(ConfigError, match="too much for the TPOT limit"):
        search(slow, llama, long_prompts, Slo(tpot_seconds=0.02), ["raw"])
    assert search(fast, llama, long_prompts, Slo(tpot_seconds=0.02), ["raw"]).best.tpot_seconds <= 0.02


def test_another_machine_never_makes_a_plan_worse(llama: ModelShape, cluster: MakeCluster) -> None:
    pair, limit = (("A100-80GB", 4, 400.0), ("A100-80GB", 4, 400.0)), Slo(tpot_seconds=0.06)
    without = search(cluster(*pair), llama, CHAT, limit, ["raw"]).best
    for gpus, more in ((1, False), (4, True)):
        found = search(cluster(*pair, ("A10G", gpus, 0.01)), llama, CHAT, limit, ["raw"])
        best = found.best
        assert best.tpot_seconds <= 0.06
        assert best.goodput > without.goodput if more else best.goodput == pytest.approx(without.goodput)
        assert best.apart == ("m2",)
        slow = next(given.option for given in best.assignments if given.machine.name == "m2")
        assert slow.prefill_flow == slow.decode_flow
        assert (slow.prefill_flow > 0) is more
        assert "no jobs go from or to m2: transfers over the NIC" in render(found)
        assert found.runner_up is not None
        assert found.runner_up.goodput <= best.goodput


def test_a_machine_that_does_both_parts_waits_for_no_network(llama: ModelShape, cluster: MakeCluster) -> None:
    """The other one is too small for the model, so nothing crosses the NIC."""
    found = search(cluster(("H100", 2, 1.0), ("T4", 1, 1.0)), llama, CHAT, Slo(tpot_seconds=0.06), ["raw"])
    assert (
        found.best.goodput
        == search(cluster(("H100", 2, 1.0)), llama, CHAT, Slo(tpot_seconds=0.06), ["raw"]).best.goodput
    )
    assert (found.best.exposed_seconds, found.best.apart) == (0, ())


@pytest.mark.parametrize(
    "machines", [(("T4", 3), ("A100-80GB", 1)), (("T4", 3), ("V100-32GB", 2)), (("L4", 3), ("T4", 1))]
)
def test_no_plan_has_a_worker_that_cannot_serve(
    llama: ModelShape, cluster: MakeCluster, machines: tuple[tuple[str, int], ...]
) -> None:
    """On three T4s two hold the model, and the third alone nothing."""
    for workload in ("256:1024", "2048:64"):
        found = search(cluster(*machines), llama, load_workload(workload), Slo())
        for plan in (found.best, *([found.runner_up] if found.runner_up else [])):
            rates = [(given.option.prefill, given.option.decode) for given in plan.assignments]
            assert all(rate.rate > 0 for pair in rates for rate in pair if rate)


def test_precision_is_given_up_only_for_goodput(llama: ModelShape, cluster: MakeCluster) -> None:
    plenty = search(cluster(("A100-80GB", 2)), llama, CHAT, Slo())
    assert plenty.best.kv_format == "raw"
    scarce = search(cluster(("A100-80GB", 2), ("A10G", 4)), llama, load_workload("2000:1000"), Slo())
    assert scarce.best.kv_format != "raw"
    goodputs = [plan.goodput for plan in scarce.formats]
    assert goodputs == sorted(goodputs)
    assert [plan.kv_format for plan in scarce.formats] == ["raw", "k8v8", "k4v4", "k4v2"]


def test_waiting_within_the_ttft_limit_is_a_queues(llama: ModelShape, cluster: MakeCluster) -> None:
    """One worker, Poisson arrivals, equal prompts: a simulated queue at the planned rate keeps the limit for the planned share."""
    from scheduler.planner import Instance

    machine = cluster(("A100-80GB", 1)).machines[0]
    instance, demand = Instance(llama, machine.device, 1, machine.assume), Demand(CHAT)
    service = float(instance.prefill_seconds(CHAT.prompts)[0])
    limit = 3 * service
    rate = prefill_rate(instance, demand, Slo(ttft_seconds=limit)).rate
    assert 0 < rate < 0.95 / service
    rng, free_at, now, met, count = random.Random(0), 0.0, 0.0, 0, 40_000
    for _ in range(count):
        now += rng.expovariate(rate)
        free_at = max(free_at, now) + service
        met += free_at - now <= limit
    assert met / count == pytest.approx(0.90, abs=0.025)
    assert ttft_quantile(instance, demand, rate, 0.9) == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("alike", [True, False])
def test_sixteen_machines_are_searched_with_few_of_the_choices_that_there_are(
    llama: ModelShape, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    """Of some 10^25 choices; a microsecond each makes seconds of what is looked at."""
    seen, keep = [0], frontier._keep

    def counted(choices: Iterable[Choice]) -> list[Choice]:
        listed = list(choices)
        seen[0] += len(listed)
        return keep(listed)

    monkeypatch.setattr(frontier, "_keep", counted)
    gpus = ("H100", "A100-80GB", "A10G", "L4")
    search(cluster(*((gpu, 8, 100.0 + (0 if alike else i)) for gpu in gpus for i in range(4))), llama, CHAT, SLO)
    assert 0 < seen[0] < 1_500_000


def test_the_report_says_what_binds_and_how_far(llama: ModelShape, cluster: MakeCluster) -> None:
    found = search(cluster(("A100-80GB", 4), ("A10G", 4)), llama, load_workload("1024:256", rate=1000), SLO)
    text = render(found)
    side = "prefill" if found.best.prefill_flow < found.best.decode_flow else "decode"
    assert f"{side} binds: " in text
    assert "could take +" in text
    assert "Runner-up" in text
    assert "not served: requests would queue without end" in text
    assert "By format raw" in text
    network = search(cluster(("H100", 1, 1.0), ("H100", 1, 1.0)), llama, CHAT, Slo())
    assert "NICs of prefill machines hold back" in render(network)
    data = as_data(found)
    assert data["best"]["goodput"] == found.best.goodput
    assert data["best"]["machines"][0]["prefill"]["instances"] == found.best.assignments[0].option.prefills


def test_results_hold_what_was_asked(llama: ModelShape, cluster: MakeCluster) -> None:
    found = search(cluster(("A100-80GB", 2)), llama, CHAT, Slo())
    assert isinstance(found, PlanResult)
    assert isinstance(found.workload, Workload)
    assert "Runner-up none" in render(search(cluster(("A100-80GB", 2)), llama, CHAT, Slo(), max_tp=1))
