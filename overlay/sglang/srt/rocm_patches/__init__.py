"""Run-time side of the patch set: which slugs are active in this process, and why others are not.

The module of each slug decides once, at import, whether the slug is active::

    SLUG = Slug("layernorm", unavailable=_why_not)
    ACTIVE = SLUG.active

A hook in an upstream file reads ``ACTIVE`` and calls into the module. If the slug is off, the hook
costs one attribute look-up. This package imports nothing from the rest of sglang. So any upstream
file can import it without a cycle, and the kernels can be tested with torch and Triton alone.
"""

import functools
import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SLUGS = ("layernorm", "indexer", "nsa-fp8-kv", "rope-kv-store", "fp8-kv-write")
ARCHS = ("gfx942", "gfx950")

ALL_OFF = "SGLANG_ROCM_PATCHES"
DECODE = "SGLANG_ROCM_PATCH_FP8_KV_WRITE_DECODE"  # fast, or exact: fp8_kv_write.py
OPTIONS = (DECODE,)  # further variables, each read by the module of one slug


def switch_of(name: str) -> str:
    return "SGLANG_ROCM_PATCH_" + name.upper().replace("-", "_")


def _warn_of_unknown_switches() -> None:
    """Warn of a misspelt switch, which would turn nothing off without a message."""
    known = (ALL_OFF, *map(switch_of, SLUGS), *OPTIONS)
    for variable in sorted(os.environ):
        if variable.startswith("SGLANG_ROCM_PATCH") and variable not in known:
            logger.warning("%s is no switch of the rocm patches: %s", variable, ", ".join(known))


_warn_of_unknown_switches()


def _off(variable: str) -> str | None:
    """Why the switch is off, or None if it is on."""
    value = os.environ.get(variable, "1")
    if value.strip().lower() in ("1", "true", "yes", "on"):
        return None
    if value.strip().lower() in ("0", "false", "no", "off"):
        return f"off: {variable}=0"
    _warn_once(f"{variable}={value!r} counts as off: write 1 (on) or 0 (off)")
    return f"off: {variable}={value!r}"


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)


@functools.lru_cache(maxsize=1)
def arch() -> str:
    """This GPU's architecture, such as ``gfx942``; empty if torch is not a HIP build."""
    if torch.version.hip is None or not torch.cuda.is_available():
        return ""
    return torch.cuda.get_device_properties(0).gcnArchName.split(":")[0]


class Slug:
    """One optimisation in this process.

    ``unavailable`` is called last, and only on a HIP platform of a known arch with the switch on.
    It returns the reason why the slug does not work on this platform, or None.
    """

    def __init__(self, name: str, unavailable: Callable[[], str | None] = lambda: None) -> None:
        self.name = name
        self.switch = switch_of(name)
        self.state = self._settle(unavailable)
        self.active = self.state == "active"
        self.declined: list[str] = []

    def _settle(self, unavailable: Callable[[], str | None]) -> str:
        for variable in (ALL_OFF, self.switch):
            if off := _off(variable):
                return off
        if torch.version.hip is None:
            return "inactive: this torch is no HIP build"
        if arch() not in ARCHS:
            return f"inactive: {arch() or 'no GPU'} is none of {', '.join(ARCHS)}"
        reason = unavailable()
        return f"inactive: {reason}" if reason else "active"

    def decline(self, reason: str) -> None:
        """Log, once for each reason, that a call of an active slug takes the pristine path."""
        if reason not in self.declined:
            self.declined.append(reason)
            logger.warning("rocm patch %s: pristine path taken: %s", self.name, reason)


def module_of(name: str) -> str:
    return f"{__name__}.{name.replace('-', '_')}"


@functools.cache
def active(name: str) -> bool:
    """Whether the slug ``name`` is applied to this tree and active. For modules of other slugs."""
    if importlib.util.find_spec(module_of(name)) is None:
        return False
    return importlib.import_module(module_of(name)).SLUG.active


def report() -> dict:
    """Provenance of this tree and the state of each slug, as plain JSON types.

    ``{"release": R, "digest": D, "slugs": {slug: {"state": str, "declined": [reason]}}}``; R and D
    are None if the overlay was copied here by hand.
    """
    provenance = Path(__file__).with_name("provenance.json")
    laid = json.loads(provenance.read_text()) if provenance.exists() else {}
    slugs = {}
    for name in SLUGS:
        if importlib.util.find_spec(module_of(name)) is None:
            slugs[name] = {"state": "not applied", "declined": []}
        else:
            slug = importlib.import_module(module_of(name)).SLUG
            slugs[name] = {"state": slug.state, "declined": list(slug.declined)}
    release = laid.get("release")
    if laid.get("near"):  # its functions are that release's, its files are not
        release = f"near {release}"
    return {"release": release, "digest": laid.get("digest"), "slugs": slugs}


def summary() -> str:
    """The report in one line, for the log."""
    laid = report()
    slugs = "; ".join(f"{name} {slug['state']}" for name, slug in laid["slugs"].items())
    release = f" for sglang {laid['release']}" if laid["release"] else ""
    return f"rocm patches {(laid['digest'] or 'of unknown origin')[:12]}{release}: {slugs}"
