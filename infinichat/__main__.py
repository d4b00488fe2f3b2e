"""``python -m infinichat``: the same as the ``infinichat`` command."""

from __future__ import annotations

import sys

from infinichat.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
