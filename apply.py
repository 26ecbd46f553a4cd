"""Turns the ROCm optimisations on and off in an sglang tree; `apply.py --help` says how."""

import sys

if __name__ == "__main__":
    try:  # around the imports too: Ctrl-C may come at once
        from pathlib import Path

        home = Path(__file__).resolve().parent
        sys.path.insert(0, str(home))  # `python3 -I` leaves the script's own folder out
        from patchset.cli import main

        sys.exit(main(sys.argv[1:], home))
    except KeyboardInterrupt:
        sys.exit(130)
