"""What a task asks of the model: a loss to learn by and a score to judge by."""

from collections.abc import Mapping

from rankwise.objectives.base import Learning, Objective, Outputs
from rankwise.objectives.classify import Classify
from rankwise.objectives.heads import ClassMeans, Head, class_means
from rankwise.objectives.language import Write
from rankwise.objectives.names import name_rows

__all__ = [
    "OBJECTIVES",
    "ClassMeans",
    "Classify",
    "Head",
    "Learning",
    "Objective",
    "Outputs",
    "Write",
    "class_means",
    "name_rows",
]

OBJECTIVES: Mapping[str, type[Objective]] = {"classify": Classify, "language": Write}
"""Value of objective.kind -> what it means."""
