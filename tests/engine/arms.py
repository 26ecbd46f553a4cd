"""The arms of every comparison, and what a scenario gave in each of them.

    pristine  the release as published
    patched   all slugs applied and switched on
    off       the same tree, SGLANG_ROCM_PATCHES=0
    <slug>    the same tree, every other slug switched off

A result is kept under build/engine/ by all that it depends on: the tree's bytes, the scenario with
its arguments and environment, the emulation, the versions. So an arm runs once for all tests, and
again only after a change.
"""

import functools
import hashlib
import json
import os
from pathlib import Path

import torch

from tests.engine.kept import locked, versions
from tests.platform.arm import Arm
from tests.platform.trees import BUILD, ROOT, packages, patched_tree, pristine_tree, slugs

KEPT = (BUILD / "engine").resolve()
IMPORTS = ("sglang.bench_one_batch", "sglang.srt.models.registry")


def switch(slug: str) -> str:
    return "SGLANG_ROCM_PATCH_" + slug.upper().replace("-", "_")


def switches(release: str, arm: str) -> dict[str, str]:
    every = slugs(release)
    return {
        "pristine": {},
        "patched": {},
        "off": {"SGLANG_ROCM_PATCHES": "0"},
        **{slug: {switch(other): "0" for other in every if other != slug} for slug in every},
    }[arm]


def tree(release: str, arm: str) -> Path:
    return pristine_tree(release) if arm == "pristine" else patched_tree(release)


def digest_of(files, relative_to: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(relative_to)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def digest_of_tree(tree: Path) -> str:
    return digest_of((tree / "sglang").rglob("*.py"), tree)


@functools.cache
def digest_of_harness() -> str:
    folders = (ROOT / "tests" / "platform", ROOT / "tests" / "engine" / "scenarios")
    sources = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    sources = [path for path in sources if "__pycache__" not in path.parts]
    return digest_of(sources, ROOT) + versions()


def result(
    release: str, arm: str, platform, scenario: str, environment: dict[str, str], **inputs
) -> dict:
    """What `scenario` ("module:function" of tests.engine.scenarios) gives in an arm."""
    settings = environment | switches(release, arm)
    sglang, beside = tree(release, arm), packages(release)
    pins = (beside / "requirements.txt").read_text() if beside else ""
    sources = [digest_of_tree(sglang), digest_of_harness(), pins]
    recipe = json.dumps([*sources, str(platform), scenario, settings, inputs], sort_keys=True)
    name = f"{scenario.replace(':', '-')}-{hashlib.sha256(recipe.encode()).hexdigest()[:24]}"
    with locked(KEPT / f"{name}.lock"):
        if not (KEPT / f"{name}.pt").exists():
            process = Arm(sglang, platform, packages=beside, imports=IMPORTS, **settings)
            found = process.run(f"tests.engine.scenarios.{scenario}", alone=True, **inputs)
            torch.save(found.outputs, KEPT / f"{name}.unfinished")
            os.replace(KEPT / f"{name}.unfinished", KEPT / f"{name}.pt")
    return torch.load(KEPT / f"{name}.pt", weights_only=True)
