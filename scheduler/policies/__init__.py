from scheduler.policies.base import Policy
from scheduler.policies.fcfs import Fcfs

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Fcfs,)}

__all__ = ["POLICIES", "Fcfs", "Policy"]
