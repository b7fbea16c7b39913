"""Makes the tiny models of the adapters' tests, and stock PEFT as the other side, importable."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.extend([str(HERE.parent / "conformance"), str(HERE.parent / "adapters")])
