#!/usr/bin/env python3
"""GSM8K, pristine against patched on real sglang servers; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ci.regression.accuracy_cli import main  # the folder above is put on the path

if __name__ == "__main__":
    sys.exit(main())
