"""A result kept in evidence/: only of runs that this machine really did."""

import json
import re
from pathlib import Path
from typing import Any

from .comparison import HOUSE, Comparison


def write(kind: str, compared: Comparison, result: dict[str, Any]) -> Path:
    """evidence/<kind>.<model>.<device>.json"""
    path = HOUSE / "evidence" / f"{kind}.{compared.preset.name}.{device(compared.arch)}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def device(arch: str) -> str:
    """The GPU's name as torch has it, with nothing that a file name cannot hold."""
    try:
        import torch

        name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"emulated-{arch}"
    except ImportError:
        name = arch
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
