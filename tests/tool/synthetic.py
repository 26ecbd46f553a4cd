"""Small patch sets and trees for the tool's tests, and the tool run on them in this process."""

import contextlib
import csv
import functools
import hashlib
import io
import json
import shutil
import signal
import subprocess
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from patchset import cli, manifest

ROOT = Path(__file__).resolve().parents[2]
RECORD = "sglang-1.0.dist-info/RECORD"
LAID = "sglang/srt/rocm_patches"


def git(*words: str, cwd: Path, check: bool = True, given: bytes = b"") -> bytes:
    """git with no configuration but its own."""
    done = subprocess.run(
        ["git", *words], cwd=cwd, check=False, capture_output=True, input=given, env=_ENVIRONMENT
    )
    assert not check or done.returncode in (0, 1 if words[0] == "diff" else 0), done.stderr.decode()
    return done.stdout


_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def diff(path: str, old: bytes, new: bytes, scratch: Path) -> bytes:
    """The patch of one file as git writes it."""
    for side, data in (("a", old), ("b", new)):
        file = scratch / side / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o644)
    sides = (f"a/{path}", f"b/{path}")
    command = ("diff", "--no-index", "--full-index", "--src-prefix=", "--dst-prefix=", *sides)
    return git(*command, cwd=scratch)


@functools.cache
def known_diff(path: str, old: bytes, new: bytes) -> bytes:
    """The same, asked of git once: most tests' patch sets are alike."""
    with tempfile.TemporaryDirectory() as scratch:
        return diff(path, old, new, Path(scratch))


def numbered(count: int, name: str = "line") -> bytes:
    return b"".join(b"%s = %d\n" % (name.encode(), n) for n in range(1, count + 1))


def replaced(data: bytes, lines: Mapping[int, str]) -> bytes:
    """`data` with its lines at these numbers (from 1) replaced, by nothing or by several."""
    old = data.splitlines(keepends=True)
    return b"".join(
        lines[n].encode() if n in lines else line for n, line in enumerate(old, start=1)
    )


PRISTINE = {
    "sglang/srt/layers/norm.py": numbered(30, "norm"),
    "sglang/srt/layers/index.py": numbered(40, "index"),
    "sglang/srt/pool.py": numbered(50, "pool"),
    "sglang/srt/server.py": numbered(20, "server"),
}
# What each slug makes of the pristine lines. `norm` and `index` share a file, two lines apart.
EDITS: dict[str, dict[str, dict[int, str]]] = {
    "norm": {
        "sglang/srt/layers/norm.py": {1: "norm at the start\n", 10: "", 30: "norm at the end"},
        "sglang/srt/layers/index.py": {12: "index = 12\nnorm below\n"},
    },
    "index": {"sglang/srt/layers/index.py": {10: "index here\n", 40: "index = 40\nindex last\n"}},
    "rope": {"sglang/srt/pool.py": {20: "rope\nrope\nrope\n", 49: ""}},
    "rope-store": {"sglang/srt/pool.py": {22: "", 23: "", 24: "store\n"}},
    "self-report": {"sglang/srt/server.py": {5: "report\n"}},
}
OVERLAY = ("__init__.py", "shared.py", "norm.py", "norm_kernel.py", "index.py", "rope.py")
OVERLAY += ("rope_store.py", "rope_store_kernel.py", "rope_kernel.py")
SLUGS = ("norm", "index", "rope", "rope-store")


class Reply(NamedTuple):
    code: int
    shown: dict
    out: str
    err: str


class House:
    """A checkout of a patch set."""

    def __init__(self, home: Path):
        self.home = home
        (home / "overlay" / LAID).mkdir(parents=True)
        (home / "patches").mkdir()
        self.whole = True  # whether the manifest follows every edit

    def lay(self, *names: str, text: str = "") -> None:
        for name in names:
            (self.home / "overlay" / LAID / name).write_text(text or f"# {name}\n")

    def release(
        self,
        name: str,
        pristine: Mapping[str, bytes] = PRISTINE,
        edits: Mapping[str, Mapping[str, Mapping[int, str]]] = EDITS,
        requires: Mapping[str, str] | None = None,
        **info: object,
    ) -> None:
        folder = self.home / "patches" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "release.json").write_text(json.dumps({"release": name, **info}))
        (folder / "series").write_text(
            "# the order of the table\n" + "".join(f"{s}\n" for s in edits if s != "self-report")
        )
        for slug, files in edits.items():
            text = f"Subject: What {slug} does\nSlug: {slug}\n".encode()
            text += f"Requires: {(requires or {}).get(slug, '')}\n\nProse.\n\n".encode()
            for path, lines in files.items():
                made = replaced(pristine[path], lines)
                text += known_diff(path, pristine[path], made)
            (folder / f"{slug}.patch").write_bytes(text)

    def run(self, *argv: str | Path) -> Reply:
        """The command in this process; without --json, so that the text can be read."""
        out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.getsignal(number) for number in numbers]
        # Tests may run in the background, where a shell has Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.whole:
            with contextlib.suppress(PermissionError):  # of another user, who edits nothing
                manifest.write(self.home)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.main([str(word) for word in argv], self.home)
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
        out.flush()
        text = out.buffer.getvalue().decode()
        shown = json.loads(text) if "--json" in argv else {}
        return Reply(code, shown, text, err.getvalue())

    def ask(self, *argv: str | Path) -> Reply:
        """The same with --json."""
        return self.run(*argv, "--json")

    def installed(self) -> None:
        """Make it one that can be run as a script."""
        manifest.write(self.home)
        shutil.copy(ROOT / "apply.py", self.home)
        shutil.copytree(
            ROOT / "patchset", self.home / "patchset", ignore=shutil.ignore_patterns("__pycache__")
        )


def house(home: Path) -> House:
    made = House(home)
    made.lay(*OVERLAY)
    made.release("1.0", requires={"index": "norm"}, also=["1.0.post1"])
    manifest.write(home)
    return made


def synthetic_tree(root: Path, files: Mapping[str, bytes] = PRISTINE, record: bool = True) -> Path:
    """An installed release at `root`, with or without its wheel's metadata."""
    own = {"sglang/__init__.py": b"", "sglang/srt/__init__.py": b"", "sglang/other.py": b"1\n"}
    every = {**own, **files}
    for path, data in every.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    if record:
        (root / RECORD).parent.mkdir()
        (root / RECORD).write_text(rows(every))
    return root


def rows(files: Mapping[str, bytes], end: str = "\n") -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=end)
    for path, data in files.items():
        proof = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        writer.writerow([path, f"sha256={proof}", len(data)])
    writer.writerow([RECORD, "", ""])
    return out.getvalue()


def content(root: Path) -> dict[str, bytes]:
    """All files below `root`, by path; what tests compare for byte identity."""
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def made(slugs: Iterable[str], path: str) -> bytes:
    """`path` with the edits of these slugs, worked out without the tool."""
    on = [*slugs, "self-report"] if slugs else []
    every: dict[int, str] = {}
    for slug in on:
        every |= EDITS[slug].get(path, {})
    return replaced(PRISTINE[path], every)
