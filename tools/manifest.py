#!/usr/bin/env python3
"""Write patches/MANIFEST after an edit of patches/ or overlay/.

Exit codes: 0 written or up to date, 2 wrong usage.
"""

import argparse
import sys
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOUSE))

from ci.entry import run  # noqa: E402  # the folder above is put on the path first
from patchset import manifest  # noqa: E402


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    written = "written" if manifest.write(HOUSE) else "up to date"
    print(f"{manifest.MANIFEST}: {written}, digest {manifest.digest(HOUSE)[:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(run("manifest", main))
