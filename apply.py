"""Turns the ROCm optimisations on and off in an sglang tree; `apply.py --help` says how."""

import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.path.insert(0, str(HOME))  # `python3 -I` leaves the script's own folder out
    try:
        from patchset.cli import main

        sys.exit(main(sys.argv[1:], HOME))
    except KeyboardInterrupt:
        sys.exit(130)
