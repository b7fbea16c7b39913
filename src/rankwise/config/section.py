"""What all tables of a config share: closed, frozen, strict about types, documented under each field."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of a config. Unknown keys and wrong types are refused; a whole number may stand for a decimal."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
