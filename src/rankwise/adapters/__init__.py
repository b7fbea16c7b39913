"""What is added to a weight: sites, banks of rank blocks, gates, inits, growth; see README.md beside this file."""

from rankwise.adapters.bank import Bank, Block, Blocks, Spec
from rankwise.adapters.branch import Branch, Gate, Identity
from rankwise.adapters.context import Aux, Context, Sink
from rankwise.adapters.edits import beside, edit, fold, forget_edits, ledger, read_weight, replay
from rankwise.adapters.growth import Change, grow
from rankwise.adapters.inits import Init, Weight
from rankwise.adapters.model import (
    Adapter,
    adapter_of,
    attach,
    banks_of,
    bare,
    detach,
    is_adapted,
    lay,
    learn_base,
    place,
    refuse_adapted,
    unwrapped,
    using,
)
from rankwise.adapters.pair import Pair
from rankwise.adapters.shelf import Shelf, thin_of
from rankwise.adapters.sites import Site, pick_sites

__all__ = [
    "Adapter",
    "Aux",
    "Bank",
    "Block",
    "Blocks",
    "Branch",
    "Change",
    "Context",
    "Gate",
    "Identity",
    "Init",
    "Pair",
    "Shelf",
    "Sink",
    "Site",
    "Spec",
    "Weight",
    "adapter_of",
    "attach",
    "banks_of",
    "bare",
    "beside",
    "detach",
    "edit",
    "fold",
    "forget_edits",
    "grow",
    "is_adapted",
    "lay",
    "learn_base",
    "ledger",
    "pick_sites",
    "place",
    "read_weight",
    "refuse_adapted",
    "replay",
    "thin_of",
    "unwrapped",
    "using",
]
