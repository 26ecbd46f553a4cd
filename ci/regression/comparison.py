"""What both commands need of a comparison: the two arms, from a preset and the command line."""

import argparse
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchset import series

from . import self_report, servers
from .errors import Refused
from .options import positive, seconds, url, words
from .presets import ALSO, ARCHS, PRESETS, RELEASES, Preset, preset
from .servers import Arm

HOUSE = Path(__file__).resolve().parents[2]
ARMS = ("pristine", "patched")
START_SECONDS = 3600.0
FIRST_SERVER = "server.json"  # what it said of itself, beside the runs


@dataclass(frozen=True)
class Comparison:
    preset: Preset
    release: str
    arch: str
    arms: dict[str, Arm]
    slugs: tuple[str, ...]  # of these that are on, those that the preset's path has
    on: tuple[str, ...]
    digest: str
    launcher: str
    start_seconds: float
    pristine_flags: tuple[str, ...]  # what the pristine server is given otherwise
    # A dry run where no GPU is found shows every chip's servers: the same on the others.
    others: tuple["Comparison", ...] = ()

    def check(self, arm: str, url: str, work: Path) -> tuple[str, self_report.Server]:
        """How the server fits its arm, in words, and what it says; raises Refused if it does not.

        `work` keeps what the first server said, and all others have to be like it.
        """
        server = self_report.read(url)
        if arm == "pristine":
            how = self_report.check_pristine(server.patches)
        else:
            self_report.check_patched(server.patches, self.digest, self.slugs, self.on)
            how = f"patch set {self.digest[:12]}"
        self_report.check_alike(server, work / FIRST_SERVER, self.pristine_flags)
        return how, server

    def as_json(self) -> dict[str, Any]:
        return {
            "preset": self.preset.name,
            "model": self.preset.model,
            "release": self.release,
            "arch": self.arch,
            "slugs": list(self.slugs),
            "digest": self.digest,
            "launcher": self.launcher,
            "arms": {
                name: {
                    "url": arm.url,
                    "tree": str(arm.tree) if arm.tree else None,
                    "arguments": list(arm.arguments),
                    "environment": arm.environment,
                }
                for name, arm in self.arms.items()
            },
            "pristine_differs": self.preset.pristine_because or None,
        }

    def shown(self) -> str:
        """The commands of both arms, to read or to paste."""
        lines = [f"on {self.arch}:"]
        for name, arm in self.arms.items():
            if arm.url is not None:
                lines.append(f"{name}: {arm.url}")
                continue
            command = shlex.join(arm.command(self.launcher, 30000))
            variables = {"SGLANG_USE_AITER": "1", **arm.environment}
            if arm.tree:
                variables["PYTHONPATH"] = str(arm.tree)
            set_to = " ".join(f"{k}={shlex.quote(v)}" for k, v in variables.items())
            lines.append(f"{name}: {set_to} {command}")
        if self.preset.pristine_because:
            lines.append(f"the pristine arm differs: {self.preset.pristine_because}")
        return "\n".join([*lines, *(other.shown() for other in self.others)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("what is compared")
    which.add_argument("--preset", required=True, choices=PRESETS)
    which.add_argument("--release", required=True, choices=(*RELEASES, *ALSO))
    which.add_argument(
        "--arch",
        choices=ARCHS,
        help="default: what rocminfo says; a dry run without a GPU shows all",
    )
    which.add_argument("--slugs", help="patches on in the tree, comma-separated; default: all")
    which.add_argument("--digest", help="the patch set to expect; default: this checkout's")
    which.add_argument("--model", help="another path or name of the model's weights")
    which.add_argument("--tp", type=positive, metavar="N", help="another number of GPUs")
    which.add_argument(
        "--server-args",
        type=words,
        default=[],
        metavar="ARGS",
        help="further flags for both, one word",
    )
    which.add_argument(
        "--pristine-args",
        type=words,
        default=[],
        metavar="ARGS",
        help="flags for the pristine server alone",
    )
    arms = parser.add_argument_group("the servers; by default both run the sglang of this python")
    arms.add_argument(
        "--pristine-tree",
        type=Path,
        help="folder with the release's sglang; default: the patched tree, all switched off",
    )
    arms.add_argument("--patched-tree", type=Path, help="folder with the patched sglang")
    arms.add_argument(
        "--pristine-url",
        type=url,
        metavar="URL",
        help="a running server; nothing is started for this arm",
    )
    arms.add_argument("--patched-url", type=url, metavar="URL", help="a running server")
    arms.add_argument(
        "--launcher",
        default=os.environ.get("SERVER_LAUNCHER", servers.DEFAULT_LAUNCHER),
        help="command before the flags, {python} and {tree} filled in; default: $SERVER_LAUNCHER "
        f"or '{servers.DEFAULT_LAUNCHER}'",
    )
    arms.add_argument("--start-timeout", type=seconds, default=START_SECONDS, metavar="SECONDS")


def from_arguments(given: argparse.Namespace) -> Comparison:
    """Raises Refused."""
    archs = (given.arch,) if given.arch else _archs(given.dry_run)
    first, *others = (_on(arch, given) for arch in archs)
    return replace(first, others=tuple(others))


def _on(arch: str, given: argparse.Namespace) -> Comparison:
    release = ALSO.get(given.release, given.release)
    chosen = preset(given.preset, release, arch)
    known = series.load(HOUSE).releases
    if release not in known:
        raise Refused(f"this patch set has no series for {release}: {', '.join(known)}")
    all_slugs = tuple(known[release].patches)
    on = tuple(given.slugs.split(",")) if given.slugs else all_slugs
    if unknown := sorted(set(on) - set(all_slugs)):
        raise Refused(
            f"--slugs: {', '.join(map(repr, unknown))} in no patch of {release}; it has "
            f"{', '.join(all_slugs)}"
        )
    expected = tuple(slug for slug in chosen.slugs if slug in on)
    if not expected:
        raise Refused(
            f"{chosen.name} does not run {given.slugs}: its path has {', '.join(chosen.slugs)}, so "
            "a comparison would show nothing"
        )
    trees = {"pristine": given.pristine_tree or given.patched_tree, "patched": given.patched_tree}
    for tree in filter(None, trees.values()):
        if not (tree / "sglang" / "__init__.py").is_file():
            raise Refused(f"{tree}: no sglang in it; give the folder that holds the package")
    arguments = list(chosen.arguments)
    if given.model:
        arguments += ["--model-path", given.model]
    if given.tp:
        arguments += ["--tp", str(given.tp)]
    arguments += given.server_args
    own = {
        "pristine": (*chosen.pristine, *given.pristine_args),
        "patched": (),
    }
    off = {} if given.pristine_tree else {"SGLANG_ROCM_PATCHES": "0"}
    servers.launched(given.launcher, given.patched_tree)  # refused now, not with the first server
    environment = {"pristine": {**chosen.environment, **off}, "patched": chosen.environment}
    urls = {"pristine": given.pristine_url, "patched": given.patched_url}
    return Comparison(
        chosen,
        release,
        arch,
        {
            name: Arm(name, (*arguments, *own[name]), environment[name], trees[name], urls[name])
            for name in ARMS
        },
        expected,
        on,
        given.digest or known[release].digest,
        given.launcher,
        given.start_timeout,
        tuple(word for word in own["pristine"] if word.startswith("--")),
    )


def _archs(dry_run: bool) -> tuple[str, ...]:
    """This machine's GPU; without one a dry run gets all chips, and any other raises Refused."""
    import re
    import subprocess

    try:
        said = subprocess.run(["rocminfo"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        said = ""
    found = re.search(r"\bgfx\w+", said)
    if found is not None and found[0] in ARCHS:
        return (found[0],)
    if dry_run:
        return ARCHS
    raise Refused(
        f"{found[0] if found else 'no AMD GPU'} found by rocminfo; name one with --arch: "
        f"{', '.join(ARCHS)}"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
