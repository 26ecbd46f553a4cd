"""Generated tables of docs/models.md: server commands, slugs and launches of each model."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from ci.regression.presets import PRESETS, RELEASES, preset
from patchset import series
from tools import tables


def all_of(house: Path, patches: series.PatchSet) -> dict[str, str]:
    return {
        "servers": "\n\n".join(servers()),
        "paths": paths(patches),
        "launches": launches(house, patches),
    }


def servers() -> Iterator[str]:
    """A command for each preset in the newest release, with its environment."""
    for name in PRESETS:
        found = preset(name, RELEASES[-1], "gfx950")
        environment = [f"{key}={shlex.quote(value)}" for key, value in found.environment.items()]
        words = ["python3 -m sglang.launch_server", *_pairs(found.arguments)]
        lines = " \\\n    ".join([" ".join([*environment, words[0]]), *words[1:]])
        slugs = ", ".join(f"`{slug}`" for slug in found.slugs)
        yield f"### {name}\n\nSlugs: {slugs}.\n\n```bash\n{lines}\n```"


def _pairs(arguments: list[str]) -> Iterator[str]:
    """Each flag with its values, quoted for a shell."""
    group: list[str] = []
    for word in arguments:
        if word.startswith("--") and group:
            yield shlex.join(group)
            group = []
        group.append(word)
    yield shlex.join(group)


def paths(patches: series.PatchSet) -> str:
    rows = [
        [f"`{name}`", found.model, *("yes" if s in found.slugs else "" for s in patches.slugs)]
        for name, found in PRESETS.items()
    ]
    return tables.markdown(["preset", "model", *(f"`{slug}`" for slug in patches.slugs)], rows)


def launches(house: Path, patches: series.PatchSet) -> str:
    rows = {
        (release.name, row["case"], row["arch"]): [
            release.name,
            row["case"].removeprefix(f"{release.name}-"),
            row["arch"],
            tables.STALE if row["stale"] else tables.before(row),
            tables.STALE if row["stale"] else str(row["patched"]),
        ]
        for release in reversed(patches.releases.values())
        for slug in release.patches
        for row in tables.launches(house, release, slug, patches)
    }
    header = ["release", "small model", "chip", "pristine", "patched"]
    return tables.markdown(header, rows.values())
