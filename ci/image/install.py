#!/usr/bin/env python3
"""Turn slugs on in the sglang of a ROCm image, and prove that the requested slugs are active.

Refuses, with nothing written, an image of another release than the requested one, and a patch set
other than the one that the image's labels will name.

Exit codes: 0 done, 1 refused, 2 wrong usage.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

HOME = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workspace", type=Path, default=Path("/sgl-workspace"))
    parser.add_argument("--release", required=True, help="what the base image is said to be")
    parser.add_argument("--digest", required=True, help="of the patch set, as ci/image/build.py")
    parser.add_argument("slugs", nargs="*", metavar="SLUG", help="all, if none is named")
    given = parser.parse_args()
    checkout = given.workspace / "sglang"
    if not (checkout / "python/sglang").is_dir():
        refuse(
            f"there is no sglang checkout at {checkout}",
            "BASE must be a released ROCm image: lmsysorg/sglang:v<release>-rocm<700|720>-<mi30x|"
            "mi35x>, which keeps its sglang there",
        )
    release = known_release(given.release)
    found = tool("status", "--tree", checkout)
    if found["release"] != release or found["status"] in ("drifted", "near"):
        refuse(
            f"{checkout} is not sglang {given.release} as released",
            "take the undated lmsysorg/sglang tag of that release: dated ones are main of a day"
            " under a release's name",
            found["message"] or f"it is {found['release']}",
        )
    if found["digest"] != given.digest:
        refuse(
            f"this patch set is {found['digest']} for {release}, and the label would say "
            f"{given.digest or 'nothing'}",
            "build with ci/image/build.py, which passes PATCHSET_DIGEST from the same checkout",
        )
    tool("apply", "--tree", checkout, *given.slugs)
    if not given.slugs:
        tool("verify", "--tree", checkout)
    now = tool("status", "--tree", checkout)
    on = {slug for slug, state in now["state"].items() if state == "on"}
    asked = {s for s in given.slugs or now["state"] if now["state"][s] in ("on", "off")}
    if on != asked:
        refuse(
            f"on are {', '.join(sorted(on)) or 'none'}, asked for was {', '.join(sorted(asked))}",
            "start from a released image: this one was patched before",
        )
    imported = tool("status")["tree"]
    if imported != now["tree"]:
        refuse(
            f"{now['tree']} is patched, but this Python imports {imported}",
            "the image has a second sglang: pip uninstall it in an image of your own first",
        )
    print(
        f"{now['tree']}: sglang {release}, patch set {given.digest[:12]}: {', '.join(sorted(on))}"
    )


def known_release(name: str) -> str:
    """The release whose patches are for `name`: 0.5.10 has the files of 0.5.10.post1."""
    known = {}
    for path in sorted((HOME / "patches").glob("*/release.json")):
        info = json.loads(path.read_text())
        known |= dict.fromkeys([info["release"], *info.get("also", [])], info["release"])
    if name not in known:
        refuse(f"no patches for release {name!r}", f"RELEASE is one of {', '.join(sorted(known))}")
    return known[name]


def tool(command: str, *arguments: object) -> dict:
    line = [sys.executable, HOME / "apply.py", command, "--json", *arguments]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    if not done.stdout:
        refuse(f"apply.py {command} said nothing", done.stderr.strip())
    answer = json.loads(done.stdout)
    # A tree that no release explains is told by the caller, who knows what it should have been.
    if done.returncode and command != "status":
        refuse(f"apply.py {command}: {answer['message']}")
    return answer


def refuse(*lines: str) -> NoReturn:
    sys.exit("\n  ".join(["install.py: " + lines[0], *filter(None, lines[1:])]))


if __name__ == "__main__":
    main()
