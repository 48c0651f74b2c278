from scheduler.policies.alise import Alise
from scheduler.policies.base import JobCost, PauseAction, Policy, Room, RunPlan
from scheduler.policies.fastserve import FastServe
from scheduler.policies.fcfs import Fcfs
from scheduler.policies.lamps import Lamps
from scheduler.policies.ltr import Ltr
from scheduler.policies.packhorse import Packhorse
from scheduler.policies.srpt_oracle import SrptOracle
from scheduler.policies.ssjf import Ssjf
from scheduler.policies.trail import Trail

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (Fcfs, Ssjf, Alise, FastServe, Trail, Ltr, Lamps, SrptOracle, Packhorse)
}

__all__ = ["POLICIES", "Fcfs", "JobCost", "PauseAction", "Policy", "Room", "RunPlan"]
