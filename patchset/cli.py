"""The command line: what was asked, of which tree, and how the outcome is told."""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, TextIO

from patchset import VERSION, commands, manifest, report, series, state, tree
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


class _OnTree(NamedTuple):
    run: Callable[[Request, Tree], Outcome]
    summary: str


_ON_TREE = {
    "apply": _OnTree(commands.turn_on, "turn slugs on"),
    "revert": _OnTree(
        commands.turn_off, "turn slugs off; with all off, the tree is the release again"
    ),
    "status": _OnTree(commands.status, "say what a tree is and which slugs are on; writes nothing"),
    "verify": _OnTree(
        commands.verify, "succeed only if exactly these slugs are on and every byte is right"
    ),
}
# What lays or vouches for files of the set; the others work with what is there.
_NEED_WHOLE_SET = ("apply", "verify", "export")


def main(argv: Sequence[str], home: Path) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: undo, then go
    _open_closed_streams()
    code, outcome = _run(argv, home)
    try:
        _tell(code, outcome, argv)
    except OSError as fault:
        _give_up(sys.stdout)
        if isinstance(fault, BrokenPipeError):  # the reader has what it wanted
            return code
        try:
            print(f"apply.py: the outcome could not be printed: {fault.strerror}", file=sys.stderr)
        except OSError:
            _give_up(sys.stderr)
        # A tree that was moved is moved; a diff or a status that nobody got is not done.
        return code if argv[0] in ("apply", "revert") else REFUSED
    return code


def _give_up(stream: TextIO) -> None:
    """Without this, Python writes what is left when it exits, fails, and exits with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_closed_streams() -> None:
    """Python has None for a stream that was closed before it started."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as we run


def _run(argv: Sequence[str], home: Path) -> tuple[int, Outcome]:
    found, patchset = None, PatchSet({}, {})
    try:
        args = _parser().parse_args(argv)
        if args.command in _NEED_WHOLE_SET:
            manifest.prove(home)
        patchset = series.load(home)
        request = _request(args, patchset, home)
        if args.command in _ON_TREE:
            found = _tree(args, patchset, home)
            outcome = _ON_TREE[args.command].run(request, found)
        elif args.command == "list":
            outcome = commands.show_releases(request)
        else:
            outcome = commands.show_diff(request)
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
        # A path that is not UTF-8 goes out with the bytes that it came in with.
        sys.stdout.buffer.write(_for(sys.stdout, outcome).encode(errors="surrogateescape"))
        if not outcome.text.endswith("\n"):
            sys.stdout.buffer.write(b"\n")
    sys.stdout.flush()


def _for(stream: TextIO, outcome: Outcome) -> str:
    plain = outcome.is_diff or not stream.isatty() or "NO_COLOR" in os.environ
    return outcome.text if plain else report.painted(outcome.text)


# What was asked -------------------------------------------------------------------------------


def _request(args: argparse.Namespace, patchset: PatchSet, home: Path) -> Request:
    slugs = list(dict.fromkeys(getattr(args, "slugs", ())))
    unknown = [slug for slug in slugs if slug not in patchset.slugs]
    if unknown:
        known = ", ".join(patchset.slugs)
        raise WrongUsage(f"there is no slug {unknown[0]!r}; there are: {known}")
    which = []
    for option in ("tree", "fetch"):
        value = getattr(args, option, None)
        if value == "":
            raise WrongUsage(f"--{option} is empty; is the variable that it came from unset?")
        which += [f"--{option}", value] if value else []
    return Request(
        args.command,
        slugs,
        patchset,
        home,
        which,
        dry_run=getattr(args, "dry_run", False),
        near=getattr(args, "near", False),
        release=getattr(args, "release", ""),
    )


def _tree(args: argparse.Namespace, patchset: PatchSet, home: Path) -> Tree:
    if args.tree:
        if os.path.isfile(args.tree):
            raise Refused(f"{args.tree} is a file; --tree takes a folder that holds sglang")
        return tree.at(args.tree)
    if args.fetch:
        from patchset.fetch import fetched  # pip and zip files are seldom needed

        if not re.fullmatch(r"\d[0-9A-Za-z.]*", args.fetch):
            raise WrongUsage(f"{args.fetch!r} is no release; it looks like 0.5.10.post1")
        if args.fetch not in patchset.covers:
            raise Refused(report.uncovered(f"this is sglang {args.fetch}", args.fetch, patchset))
        return tree.at(str(fetched(args.fetch, patchset, home / "build")))
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
    parser.add_argument("--version", action="version", version=f"rocm-patches {VERSION}")
    adders = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)

    def add(command: str, summary: str) -> argparse.ArgumentParser:
        added = adders.add_parser(
            command,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=_EXIT_CODES,
            allow_abbrev=False,
        )
        added.add_argument("--json", action="store_true", help="print one JSON object")
        added.add_argument("--quiet", action="store_true", help="print refusals only")
        if command not in ("status", "list"):
            added.add_argument("slugs", nargs="*", metavar="SLUG", help="all, if none is named")
        return added

    for command, (_, summary) in _ON_TREE.items():
        added = add(command, summary)
        if command in ("apply", "revert"):
            added.add_argument("--dry-run", action="store_true", help="say what would change")
            added.add_argument(
                "--near",
                action="store_true",
                help="in a tree of no covered release too, those whose functions are a release's",
            )
        _add_tree(added)
    add("list", "the releases, their slugs, what each does and needs; needs no tree")
    exporting = add("export", "one diff of patches and overlay, for git apply or git am")
    exporting.add_argument("--release", required=True, metavar="R", help="which release")
    return parser


def _add_tree(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group(
        "which tree", "without either, the sglang that this Python would import"
    ).add_mutually_exclusive_group()
    which.add_argument(
        "--tree", metavar="PATH", help="a checkout, its python/, a site-packages, or the package"
    )
    which.add_argument(
        "--fetch", metavar="R", help="that published release, downloaded once into build/"
    )
