"""PEFT's checkpoint format, both ways: what stock PEFT wrote is read, and what leaves computes the same there."""

from rankwise.surgery.peft.config import form_named
from rankwise.surgery.peft.naming import is_peft
from rankwise.surgery.peft.reading import from_peft, origin
from rankwise.surgery.peft.writing import to_peft

__all__ = ["form_named", "from_peft", "is_peft", "origin", "to_peft"]
