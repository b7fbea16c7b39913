"""What is added to a weight: sites, banks of rank blocks, gates, inits, growth; see README.md beside this file."""

from rankwise.adapters.bank import Bank, Block, Blocks, Spec
from rankwise.adapters.context import Context, Sink
from rankwise.adapters.growth import Change, grow
from rankwise.adapters.model import (
    Adapter,
    adapter_of,
    attach,
    banks_of,
    bare,
    detach,
    fold,
    is_adapted,
    learn_base,
    place,
    refuse_adapted,
    using,
)
from rankwise.adapters.pair import Gate, Identity, Pair
from rankwise.adapters.sites import Site, pick_sites

__all__ = [
    "Adapter",
    "Bank",
    "Block",
    "Blocks",
    "Change",
    "Context",
    "Gate",
    "Identity",
    "Pair",
    "Sink",
    "Site",
    "Spec",
    "adapter_of",
    "attach",
    "banks_of",
    "bare",
    "detach",
    "fold",
    "grow",
    "is_adapted",
    "learn_base",
    "pick_sites",
    "place",
    "refuse_adapted",
    "using",
]
