"""The platform of a test: an AMD GPU, or an NVIDIA GPU or a CPU that sglang takes for one."""

from .value import Platform, available, choose

__all__ = ["Platform", "available", "choose"]
