"""What a task asks of the model: a loss to learn by and a score to judge by."""

from rankwise.objectives.base import Learning, Objective, Outputs
from rankwise.objectives.classify import Classify
from rankwise.objectives.heads import ClassMeans, Head, class_means
from rankwise.objectives.names import name_rows

__all__ = ["ClassMeans", "Classify", "Head", "Learning", "Objective", "Outputs", "class_means", "name_rows"]
