"""What a result is kept with: on what it was measured, and its place in evidence/."""

import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from patchset import series

from .comparison import HOUSE, Comparison

IMAGE = "ROCM_PATCHES_IMAGE"  # set in the container by ci/amd/in_image.sh


def write(kind: str, compared: Comparison, result: dict[str, Any]) -> Path:
    """Its place in evidence/, where no comparison takes another's."""
    every = tuple(series.load(HOUSE).releases[compared.release].patches)
    slugs = "all" if set(compared.on) == set(every) else "+".join(compared.on)
    path = HOUSE / "evidence"
    path /= name(kind, compared.preset.name, compared.release, slugs, device(compared))
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def name(
    kind: str,
    model: str = "<model>",
    release: str = "<release>",
    slugs: str = "<slugs>",
    device: str = "<device>",
) -> str:
    return f"{kind}.{model}.{release}.{slugs}.{device}.json"


def measured_on(compared: Comparison) -> dict[str, str | None]:
    """Image, packages and GPU; None where not known, as of servers that were given by URL.

    sglang's version is the server's own word, beside each run.
    """
    if not started_here(compared):
        return {"image": None, "torch": None, "aiter": None, "gpu": None}
    return {
        "image": os.environ.get(IMAGE),
        "torch": _version("torch"),
        "aiter": _version("aiter", "amd-aiter"),
        "gpu": _gpu(),
    }


def device(compared: Comparison) -> str:
    """The GPU's name as torch has it, with nothing that a file name cannot hold.

    Servers given by URL may run on another machine: all that is known of it is the architecture.
    """
    name = compared.arch
    if started_here(compared):
        name = _gpu() or f"emulated-{compared.arch}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def started_here(compared: Comparison) -> bool:
    return any(arm.url is None for arm in compared.arms.values())


def _gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
