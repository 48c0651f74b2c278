"""The simulator: discrete events around the live scheduler objects."""

from .cluster import ModelSize, SimCluster, SimWorkerSpec
from .machines import CLUSTERS, LLAMA_8B, a100_cluster, model_size, planned_cluster
from .prompts import BlockPrompt, SimOracle, SimPrompt
from .records import CANCELLED, DONE, FAILED, Figures, Records, Slo, summarize
from .saturation import saturation_rate
from .simulation import GATEWAY, Simulation, patient_config
from .workload import Arrivals, Failure, Workload

__all__ = [
    "CANCELLED",
    "CLUSTERS",
    "DONE",
    "FAILED",
    "GATEWAY",
    "LLAMA_8B",
    "Arrivals",
    "BlockPrompt",
    "Failure",
    "Figures",
    "ModelSize",
    "Records",
    "SimCluster",
    "SimOracle",
    "SimPrompt",
    "SimWorkerSpec",
    "Simulation",
    "Slo",
    "Workload",
    "a100_cluster",
    "model_size",
    "patient_config",
    "planned_cluster",
    "saturation_rate",
    "summarize",
]
