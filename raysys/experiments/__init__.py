"""Experiments: who gets which arm, what it did, and what a log says of another policy."""

from raysys.experiments.assignment import Assignment, assign
from raysys.experiments.definition import Experiment, ExperimentsSettings

__all__ = ["Assignment", "Experiment", "ExperimentsSettings", "assign"]
