from scheduler.placement.base import Pair, Placement
from scheduler.placement.baselines import LeastOutstanding, PowerOfTwo, RoundRobin
from scheduler.placement.bound import BoundRoundRobin
from scheduler.placement.completion import PredictedCompletion
from scheduler.placement.least_loaded import LeastLoaded

PLACEMENTS: dict[str, type[Placement]] = {
    placement.name: placement
    for placement in (LeastLoaded, PredictedCompletion, RoundRobin, BoundRoundRobin, LeastOutstanding, PowerOfTwo)
}

__all__ = ["PLACEMENTS", "LeastLoaded", "Pair", "Placement", "PredictedCompletion"]
