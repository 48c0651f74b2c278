"""The simulator: discrete events around the live scheduler objects."""

from .cluster import A100_COST, CLUSTERS, LLAMA_8B, ModelSize, SimCluster, SimWorkerSpec, a100_cluster
from .records import CANCELLED, DONE, FAILED, Figures, Records, Slo, summarize
from .saturation import saturation_rate
from .simulation import GATEWAY, Simulation, patient_config
from .workload import Arrivals, Failure, Workload

__all__ = [
    "A100_COST",
    "CANCELLED",
    "CLUSTERS",
    "DONE",
    "FAILED",
    "GATEWAY",
    "LLAMA_8B",
    "Arrivals",
    "Failure",
    "Figures",
    "ModelSize",
    "Records",
    "SimCluster",
    "SimWorkerSpec",
    "Simulation",
    "Slo",
    "Workload",
    "a100_cluster",
    "patient_config",
    "saturation_rate",
    "summarize",
]
