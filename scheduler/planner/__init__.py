"""Plans deployments of a described heterogeneous cluster: which GPUs prefill, which decode, in what tensor-parallel degree and format."""

from .cluster import Cluster, Machine, load_cluster
from .cost import Instance, PageSizes
from .devices import Device, driver_name, known_devices
from .model_shape import ModelShape, read_shape
from .priors import registered_prior, worker_prior
from .rates import Slo
from .report import as_data, render
from .search import DEFAULT_FORMATS, Plan, PlanResult, search
from .workload import Workload, load_workload

__all__ = [
    "DEFAULT_FORMATS",
    "Cluster",
    "Device",
    "Instance",
    "Machine",
    "ModelShape",
    "PageSizes",
    "Plan",
    "PlanResult",
    "Slo",
    "Workload",
    "as_data",
    "driver_name",
    "known_devices",
    "load_cluster",
    "load_workload",
    "read_shape",
    "registered_prior",
    "render",
    "search",
    "worker_prior",
]
