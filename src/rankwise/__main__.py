"""`python -m rankwise`: the command `rankwise`."""

from __future__ import annotations

import sys

from rankwise.cli import main

if __name__ == "__main__":
    sys.exit(main())
