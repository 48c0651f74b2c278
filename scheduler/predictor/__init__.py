"""Predicts output lengths. `make_predictor` gives one by name; Prediction and JobFeatures are what goes out and in."""

from scheduler.predictor.base import LEVELS, JobFeatures, Prediction, Predictor
from scheduler.predictor.refine import Refiner
from scheduler.predictor.registry import PREDICTORS, make_predictor

__all__ = ["LEVELS", "PREDICTORS", "JobFeatures", "Prediction", "Predictor", "Refiner", "make_predictor"]
