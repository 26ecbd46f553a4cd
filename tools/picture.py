#!/usr/bin/env python3
"""Draw the launches of one layer's decode step, pristine above patched, into docs/decode-step.svg.

    python3 tools/picture.py

A box is one launch. Launches that are the same in both arms are left out and counted in the title.
The counts are those of evidence/launches.jsonl. Exit codes: 0 drawn, 2 wrong usage.
"""

import argparse
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

HOUSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOUSE))  # before this folder, whose evidence.py is not the package

from ci.entry import run  # noqa: E402
from evidence import store  # noqa: E402

LAYERS = 2  # of the small models that are counted
SHOWN = {
    ("glm-5-fp8", "gfx942"): "GLM-5, FP8 cache, gfx942",
    ("minimax-m2-fp8-scaled", "gfx942"): "MiniMax-M2, FP8 cache with scales, gfx942",
    ("qwen3-moe-fp8-scaled", "gfx942"): "Qwen3-MoE, FP8 cache with scales, gfx942",
}
NAMES = {"_to_copy": "cast", "index_put_": "store", "native_layer_norm": "layer_norm"}
WIDTH, LEFT, BOX, GAP, LETTER = 960, 96, 26, 6, 7.2
STYLE = """
text { font: 12px ui-monospace, Menlo, Consolas, monospace; fill: #1f2328 }
.title { font-weight: bold } .arm { fill: #59636e }
.theirs { fill: #eaeef2; stroke: #afb8c1 } .ours { fill: #ddf4ff; stroke: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .arm { fill: #9198a1 }
  .theirs { fill: #2a313c; stroke: #656c76 } .ours { fill: #0c2d6b; stroke: #4493f8 }
}
"""


class Launch(NamedTuple):
    name: str
    ours: bool


def launches(row: dict, arm: int) -> list[Launch]:
    """One layer's launches that differ between the arms; arm 0 is pristine, 1 patched."""
    found = []
    for name, counts in row["changed"].items():
        more = counts[arm] - min(counts)  # what the other arm launches too is the same
        ours = counts[0] == 0 and not name.startswith("aten::")
        found += [Launch(shown(name), ours)] * (more // LAYERS)
    return found


def shown(kernel: str) -> str:
    last = kernel.rpartition(".")[2].rpartition("::")[2]
    return NAMES.get(last, last.removeprefix("_").removesuffix("_kernel"))


def drawn(rows: list[dict]) -> str:
    parts, y = list[str](), 24
    for row in rows:
        title = SHOWN.get((row["case"], row["arch"]))
        if not title or row["pristine"] is None:
            continue
        before, after = (launches(row, arm) for arm in (0, 1))
        same = row["patched"] // LAYERS - len(after)
        text = f"{title}: {len(before)} launches become {len(after)}; {same} stay as they are"
        parts.append(f'<text class="title" x="8" y="{y}">{escape(text)}</text>')
        for arm, boxes in (("pristine", before), ("patched", after)):
            y += 12
            parts.append(f'<text class="arm" x="8" y="{y + 17}">{arm}</text>')
            lines, y = _boxes(boxes, y)
            parts += lines
        y += 36
    style = f"<style>{STYLE}</style>"
    size = f'width="{WIDTH}" height="{y - 12}" viewBox="0 0 {WIDTH} {y - 12}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, style, *parts, "</svg>"]) + "\n"


def _boxes(boxes: list[Launch], y: int) -> tuple[list[str], int]:
    """The boxes from left to right, in as many lines as they need, and where the last line ends."""
    parts, x = list[str](), float(LEFT)
    for launch in boxes:
        width = len(launch.name) * LETTER + 14
        if x + width > WIDTH - 8:
            x, y = float(LEFT), y + BOX + GAP
        kind = "ours" if launch.ours else "theirs"
        place = f'x="{x:.0f}" y="{y}" width="{width:.0f}" height="{BOX}" rx="4"'
        parts.append(f'<rect class="{kind}" {place}/>')
        parts.append(f'<text x="{x + 7:.0f}" y="{y + 17}">{escape(launch.name)}</text>')
        x += width + GAP
    return parts, y + BOX


def picture(house: Path) -> str:
    return drawn(store.rows_of(house / "evidence/launches.jsonl"))


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    (HOUSE / "docs/decode-step.svg").write_text(picture(HOUSE))
    return 0


if __name__ == "__main__":
    sys.exit(run("picture", main))
