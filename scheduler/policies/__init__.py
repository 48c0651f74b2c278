from scheduler.policies.base import JobCost, PauseAction, Policy, Room, RunPlan
from scheduler.policies.fcfs import Fcfs

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Fcfs,)}

__all__ = ["POLICIES", "Fcfs", "JobCost", "PauseAction", "Policy", "Room", "RunPlan"]
