"""Moves an sglang tree between states. Standard library only; `apply.py` is the way in."""
