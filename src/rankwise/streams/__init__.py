"""Streams: tasks in order, from files, folders, the hub or memory, and their batches."""

from rankwise.streams.augment import refuse_texts, views
from rankwise.streams.base import Split, Stream, Task
from rankwise.streams.batches import Batch, Loader, concat, encoded, in_order, lengths_of
from rankwise.streams.building import build_stream as build

__all__ = [
    "Batch",
    "Loader",
    "Split",
    "Stream",
    "Task",
    "build",
    "concat",
    "encoded",
    "in_order",
    "lengths_of",
    "refuse_texts",
    "views",
]
