"""Sweeps: many runs of one config, each method's settings picked on validation data, test scores read once."""

from rankwise.sweeping.grid import parse_grid
from rankwise.sweeping.plan import Cell, Plan, make_plan

__all__ = ["Cell", "Plan", "make_plan", "parse_grid"]
