"""What a test runs on: a real AMD GPU, an NVIDIA GPU in its place, or a CPU in its place."""

from .value import Platform, available, choose

__all__ = ["Platform", "available", "choose"]
