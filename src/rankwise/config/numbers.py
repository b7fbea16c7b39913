"""Ranges of numbers in settings, checked where a config is read; light, as everything in this room."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
"""How many of something there are: at least one."""
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
"""A part of something, from nothing to all of it."""
Portion = Annotated[float, Field(gt=0, le=1)]
"""A part of something, up to all of it and never nothing."""
Fraction = Annotated[float, Field(ge=0, lt=1)]
"""A part of something, from nothing on and never all of it."""
