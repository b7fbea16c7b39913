"""Makes the tiny models of the adapters' tests, and this folder's own module, importable."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.extend([str(HERE), str(HERE.parent / "adapters")])
