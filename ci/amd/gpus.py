#!/usr/bin/env python3
"""Check that a machine has enough GPUs, all of one chip, and that no other process uses them.

If a killed job still holds GPU memory, the next job fails in ways that look like a bug of the
patches. So this command waits until the memory is free, then names the processes that hold it.

Exit codes: 0 free, 1 not, 2 wrong usage.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from typing import NoReturn

USED = "VRAM Total Used Memory (B)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", required=True, choices=("gfx942", "gfx950"))
    parser.add_argument("--count", type=int, default=1, help="at least so many")
    parser.add_argument("--used-mib", type=int, default=1024, help="what an idle GPU may have used")
    parser.add_argument("--wait", type=float, default=120, metavar="SECONDS")
    given = parser.parse_args()
    archs = re.findall(r"^\s*Name:\s*(gfx\w+)", run("rocminfo"), re.MULTILINE)
    if set(archs) != {given.arch}:
        found = ", ".join(sorted(set(archs))) or "no GPU"
        refuse(f"{given.arch} is asked for, {found} is here", "is the runner's label right?")
    # What this container may use; rocm-smi counts the cards of the machine.
    if len(archs) < given.count:
        refuse(f"{len(archs)} GPUs can be used here, {given.count} are needed")
    until = time.monotonic() + given.wait
    while True:
        used = vram()
        busy = {card: mib for card, mib in used.items() if mib > given.used_mib}
        if not busy:
            print(f"{len(archs)} {given.arch}, all free")
            return
        if time.monotonic() > until:
            held = ", ".join(f"{card} {mib} MiB" for card, mib in busy.items())
            refuse(f"memory is in use: {held}", run("rocm-smi", "--showpids"))
        time.sleep(min(5, given.wait))


def vram() -> dict[str, int]:
    """MiB in use, by card."""
    said = run("rocm-smi", "--showmeminfo", "vram", "--json")
    try:
        cards = json.loads(said).items()
        used = {card: int(of[USED]) >> 20 for card, of in cards if card.startswith("card")}
    except (ValueError, AttributeError, LookupError, TypeError):
        refuse(f'rocm-smi does not say "{USED}" of each card', f"it says: {said.strip()}")
    if not used:
        refuse("rocm-smi names no card", f"it says: {said.strip()}")
    return used


def run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        refuse(f"there is no {command[0]} here", "run this in a ROCm image: ci/amd/in_image.sh")
    if done.returncode:
        refuse(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def refuse(*lines: str) -> NoReturn:
    sys.exit("\n  ".join(["gpus.py: " + lines[0], *lines[1:]]))


if __name__ == "__main__":
    main()
