"""The platform of a test, as a value.

This module imports neither torch nor Triton: on the CPU, the environment variable of Triton's
interpreter must be set before Triton is imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ARCHS = ("gfx942", "gfx950")


@dataclass(frozen=True)
class Platform:
    name: str  # "rocm", "cuda" or "cpu"
    arch: str  # the AMD architecture that it is or stands for

    def __str__(self) -> str:
        return f"{self.name}-{self.arch}"

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device("cpu" if self.name == "cpu" else "cuda")

    @property
    def fp8_dtype(self) -> torch.dtype:
        import torch

        return torch.float8_e4m3fnuz if self.arch == "gfx942" else torch.float8_e4m3fn

    @property
    def fp8_max(self) -> float:
        """The largest finite value of fp8_dtype: where a store saturates, what aiter scales to."""
        return 240.0 if self.arch == "gfx942" else 448.0

    @property
    def act_quant_max(self) -> float:
        """What sglang's own activation quantisers scale to."""
        return 224.0 if self.arch == "gfx942" else 448.0

    @property
    def ck_truncates_bf16(self) -> bool:
        """aiter's compiled operators round bf16 outputs toward zero on gfx942."""
        return self.arch == "gfx942"

    @property
    def triton_fp8(self) -> str:
        """fp8_dtype in a Triton signature."""
        return "fp8e4b8" if self.arch == "gfx942" else "fp8e4nv"

    @property
    def lds_bytes(self) -> int:
        return (64 if self.arch == "gfx942" else 160) * 1024


def choose() -> str:
    """The name of the platform that this machine offers."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if torch.version.hip is None else "rocm"


def available(name: str, arch: str | None = None) -> list[Platform]:
    """The platforms that tests run on under `name`, all architectures or the one asked for."""
    if name == "cpu":
        archs: tuple[str, ...] = ARCHS
    elif name == "cuda":
        archs = ("gfx950",)  # e4m3fnuz of gfx942 does not compile for NVIDIA
    elif name == "rocm":
        import torch

        archs = (torch.cuda.get_device_properties(0).gcnArchName.split(":")[0],)
    else:
        raise ValueError(f"platform {name!r}: none of rocm, cuda, cpu")
    if arch is not None and arch not in archs:
        raise ValueError(f"platform {name} stands for {', '.join(archs)}, not for {arch}")
    return [Platform(name, each) for each in archs if arch in (None, each)]


def refuse_the_interpreter(name: str) -> None:
    """ValueError where the user's environment would have kernels interpreted on a GPU."""
    setting = os.environ.get("TRITON_INTERPRET", "0")
    if name != "cpu" and setting not in ("", "0"):
        raise ValueError(
            f"TRITON_INTERPRET={setting} in the environment: on platform {name} kernels run "
            "natively, and what they show would pass for evidence of a GPU; unset it"
        )


def prepare(name: str) -> None:
    """Make this process ready for the platform; before Triton is imported."""
    refuse_the_interpreter(name)
    if name != "cpu":
        return
    os.environ["TRITON_INTERPRET"] = "1"
    from . import triton_interpreter

    triton_interpreter.install()
