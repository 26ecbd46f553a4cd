#!/usr/bin/env python3
"""Write patches/published.json: the files that distinguish every published release.

    python3 tools/published.py                all releases from 0.5.6 on that the package index has
    python3 tools/published.py 0.5.24 ...     add these to the table

Each wheel is downloaded by pip into build/wheels/ once; of most, FILES alone are read.
Exit codes: 0 written, 1 two releases look the same, 2 wrong usage or a wheel cannot be had.
"""

import argparse
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOUSE))

from ci.entry import WRONG, Stop, run  # noqa: E402  # the folder above is put on the path first
from patchset.diff import blob_id  # noqa: E402
from patchset.published import version  # noqa: E402

OLDEST = "0.5.6"
# In every release, changed by nearly every one, and touched by no patch.
FILES = (
    "sglang/srt/server_args.py",
    "sglang/srt/environ.py",
    "sglang/srt/entrypoints/engine.py",
    "sglang/srt/model_executor/model_runner.py",
    "sglang/srt/speculative/eagle_worker_v2.py",
)
TABLE = HOUSE / "patches/published.json"
WHEELS = HOUSE / "build/wheels"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def releases_of_the_index() -> list[str]:
    done = subprocess.run([*PIP, "index", "versions", "sglang"], capture_output=True, text=True)
    said = re.search(r"Available versions: (.*)", done.stdout)
    if not said:
        raise Stop(f"pip names no versions of sglang\n{done.stderr.strip()}")
    return [name for name in said[1].split(", ") if version(name) >= version(OLDEST)]


def wheel(release: str) -> Path:
    found = sorted(WHEELS.glob(f"sglang-{release}-*.whl"))
    if not found:
        # Later wheels hold one compiled module and name the platform that it is for.
        platform = ["--python-version", "3.11", "--platform", "manylinux_2_34_x86_64"]
        command = [*PIP, "download", "--no-deps", "--only-binary=:all:", "--quiet", *platform]
        done = subprocess.run([*command, "--dest", WHEELS, f"sglang=={release}"])
        found = sorted(WHEELS.glob(f"sglang-{release}-*.whl"))
        if done.returncode or not found:
            raise Stop(f"pip could not download sglang {release}")
    return found[0]


def blobs(release: str) -> list[str]:
    with zipfile.ZipFile(wheel(release)) as packed:
        return [blob_id(packed.read(name)) for name in FILES]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*", metavar="R", help="a release to add")
    given = parser.parse_args().releases
    known = json.loads(TABLE.read_text())["releases"] if given else {}
    known |= {release: blobs(release) for release in given or releases_of_the_index()}
    known = {release: known[release] for release in sorted(known, key=version)}
    for release, ids in known.items():
        twins = [other for other in known if known[other] == ids and other != release]
        if twins:
            raise Stop(f"{release} and {twins[0]} do not differ in FILES", WRONG)
    TABLE.write_text(json.dumps({"files": FILES, "releases": known}, indent=2) + "\n")
    print(f"{TABLE.relative_to(HOUSE)}: {len(known)} releases")
    return 0


if __name__ == "__main__":
    sys.exit(run("published", main))
