"""Moves an sglang tree between states. Standard library only; `apply.py` is the way in."""

VERSION = "0.1.0"  # of the patch set, told by `apply.py --version`
