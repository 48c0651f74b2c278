"""What work costs on each worker: times predicted from a few coefficients, which are fitted to what workers report."""

from .errors import ErrorSummary, ErrorWindow
from .fit import fit_relative
from .fitted_time import FittedTime
from .model import CostModel, WorkerCost
from .prior import DEFAULT_PRIOR, WorkerPrior

__all__ = [
    "DEFAULT_PRIOR",
    "CostModel",
    "ErrorSummary",
    "ErrorWindow",
    "FittedTime",
    "WorkerCost",
    "WorkerPrior",
    "fit_relative",
]
