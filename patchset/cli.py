"""The command line: what was asked, of which tree, and how the outcome is told."""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from patchset import commands, report, series, state, tree
from patchset.commands import Outcome, Request
from patchset.errors import Refused, WrongUsage
from patchset.series import PatchSet
from patchset.state import NotMovable
from patchset.tree import Tree

DONE, REFUSED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

_EXIT_CODES = (
    "exit codes: 0 done or nothing to do; 1 refused, and nothing was written; 2 wrong usage; "
    "130 interrupted, the tree as before or as asked"
)


def main(argv: Sequence[str], home: Path) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: undo, then go
    try:
        code, outcome = _run(argv, home)
        _tell(code, outcome, argv)
    except BrokenPipeError:
        # The reader has gone. Without this, Python complains about stdout when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return code


def _run(argv: Sequence[str], home: Path) -> tuple[int, Outcome]:
    found, patchset = None, PatchSet({}, {})
    try:
        args = _parser().parse_args(argv)
        patchset = series.load(home)
        slugs = _slugs(args, patchset)
        found = _tree(args, home) if "tree" in args else None
        outcome = args.command(Request(args, slugs, patchset, found, home))
        return (DONE if outcome.good else REFUSED), outcome
    except NotMovable as refusal:
        text = report.not_movable(refusal.state, home)
        return REFUSED, Outcome(False, text, report.as_json(refusal.state, text))
    except Refused as refusal:
        return REFUSED, _stopped(str(refusal), found, patchset)
    except WrongUsage as wrong:
        return WRONG_USAGE, _stopped(f"{wrong}\nsee: {report.command('--help')}", found, patchset)
    except KeyboardInterrupt:
        text = f"interrupted; the tree is as before or as asked: {report.command('status')} says"
        return INTERRUPTED, _stopped(text, found, patchset)


def _stopped(text: str, found: Tree | None, patchset: PatchSet) -> Outcome:
    now = None
    if found:
        with contextlib.suppress(Refused):
            now = state.read(found, patchset)
    return Outcome(False, text, report.as_json(now, text))


def _tell(code: int, outcome: Outcome, argv: Sequence[str]) -> None:
    if "--json" in argv:
        print(json.dumps(outcome.shown))
    elif code != DONE:
        print(f"apply.py: {_for(sys.stderr, outcome)}", file=sys.stderr)
    elif "--quiet" not in argv:
        # As bytes: a diff must arrive as it is, whatever the terminal's encoding.
        sys.stdout.buffer.write(_for(sys.stdout, outcome).encode())
        if not outcome.text.endswith("\n"):
            sys.stdout.buffer.write(b"\n")
    sys.stdout.flush()


def _for(stream: TextIO, outcome: Outcome) -> str:
    plain = outcome.is_diff or not stream.isatty() or "NO_COLOR" in os.environ
    return outcome.text if plain else report.painted(outcome.text)


# What was asked -------------------------------------------------------------------------------


def _slugs(args: argparse.Namespace, patchset: PatchSet) -> list[str]:
    slugs = list(dict.fromkeys(getattr(args, "slugs", ())))
    unknown = [slug for slug in slugs if slug not in patchset.slugs]
    if unknown:
        known = ", ".join(patchset.slugs)
        raise WrongUsage(f"there is no slug {unknown[0]!r}; there are: {known}")
    return slugs


def _tree(args: argparse.Namespace, home: Path) -> Tree:
    if args.tree:
        return tree.at(args.tree)
    if args.fetch:
        from patchset.fetch import fetched  # pip and zip files are seldom needed

        return tree.at(str(fetched(args.fetch, home / "build")))
    return tree.imported(sys.path)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongUsage(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="apply.py",
        description="Turns ROCm optimisations of sglang on and off in an sglang tree.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    adders = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(run: commands.Command, summary: str) -> argparse.ArgumentParser:
        added = adders.add_parser(
            run.__name__,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=_EXIT_CODES,
            allow_abbrev=False,
        )
        added.set_defaults(command=run)
        added.add_argument("--json", action="store_true", help="print one JSON object")
        return added

    for run, summary in (
        (commands.apply, "turn slugs on"),
        (commands.revert, "turn slugs off; with all off, the tree is the release again"),
    ):
        moving = add(run, summary)
        moving.add_argument("slugs", nargs="*", metavar="SLUG", help="all, if none is named")
        moving.add_argument("--dry-run", action="store_true", help="say what would change")
        _add_tree(moving)
    _add_tree(add(commands.status, "say what a tree is and which slugs are on; writes nothing"))
    _add_tree(add(commands.verify, "succeed only if every slug is on and every byte is right"))
    add(commands.list, "the releases, their slugs, what each does and needs; needs no tree")
    exporting = add(commands.export, "one diff of patches and overlay, for git apply or git am")
    exporting.add_argument("slugs", nargs="*", metavar="SLUG", help="all, if none is named")
    exporting.add_argument("--release", required=True, metavar="R", help="which release")
    return parser


def _add_tree(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print refusals only")
    which = parser.add_argument_group(
        "which tree", "without either, the sglang that this Python would import"
    ).add_mutually_exclusive_group()
    which.add_argument(
        "--tree", metavar="PATH", help="a checkout, its python/, a site-packages, or the package"
    )
    which.add_argument(
        "--fetch", metavar="R", help="that published release, downloaded once into build/"
    )
