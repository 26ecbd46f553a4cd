#!/usr/bin/env python3
"""Make a platform's Python environment in build/ and print its folder, the one that
`source ci/environment.sh` puts first on PATH.

    ci/environment.py cpu                    for the tests without a GPU
    ci/environment.py cuda|rocm              test tools beside the packages of the machine: its own
                                             torch, triton and aiter are what is tested
    ci/environment.py cuda|rocm accuracy     also what ci/gsm8k.py and ci/throughput.py need

Every package is pinned and installed without its dependencies: ci/requirements*.txt list them
all, so pip has nothing to resolve. torch is the build without CUDA if pip finds it where it is
configured to look; PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS name further places. An environment that
is not whole is made anew; one whose lists have changed is brought up to them.

Exit codes: 0 it is there, 2 wrong usage or something is missing, 4 it could not be made, 130
interrupted: the next call makes it anew.
"""

import argparse
import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOUSE))

from ci.entry import DONE, FAILED, Stop, run  # noqa: E402  # the folder above is on the path

BUILD = HOUSE / "build"
BUILT_WITH = "ci/requirements-build.txt"
SGLANG, TOOLS, ACCURACY = (f"ci/requirements{name}.txt" for name in ("", "-tools", "-accuracy"))
TORCH_FOR_CUDA = "ci/requirements-torch-cuda.txt"
# The first and the last Python that the pins have wheels for; the ROCm images have 3.10.
PYTHONS = {"cpu": ((3, 11), (3, 13)), "cuda": ((3, 10), (3, 13)), "rocm": ((3, 10), (3, 13))}
# GB to download with nothing in pip's cache, and GB on the disk.
SIZES = {
    "cpu": (0.9, 3.0),
    "torch for CUDA": (2.1, 2.9),
    "tools": (0.1, 0.4),
    "accuracy": (0.2, 0.6),
}
IN_PIPS_LOG = {
    "NewConnectionError|NameResolutionError|ProxyError|ConnectTimeout|Network is unreachable": (
        "the package index cannot be reached; run this again with a network"
    ),
    "No space left on device": "the disk is full; run this again with more space",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ci/environment.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("platform", choices=PYTHONS)
    parser.add_argument("more", nargs="?", choices=("accuracy", ""), help="beside a GPU's packages")
    given = parser.parse_args()
    # pip is ended with this program, and not left at work in the folder.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    home = Environment(given.platform, accuracy=bool(given.more)).made()
    print(home)
    return DONE


class Environment:
    def __init__(self, platform: str, accuracy: bool):
        self.beside = platform != "cpu"
        self.platform = platform
        self.files = [TOOLS]
        if not self.beside:
            self.files += [BUILT_WITH, SGLANG]
        if accuracy or not self.beside:
            self.files += [ACCURACY]
        self.releases = [] if self.beside else sorted(HOUSE.glob("ci/requirements-[0-9]*.txt"))
        name = f"environment-{platform}" + "-accuracy" * (accuracy and self.beside)
        self.home = BUILD / name
        self.log = BUILD / f"{name}.log"
        self.stamp = self.home / "stamp"
        self.python = self.home / "bin/python"

    def made(self) -> Path:
        self.check_python()
        if self.is_whole():
            return self.home
        BUILD.mkdir(exist_ok=True)
        with (BUILD / f"{self.home.name}.lock").open("w") as lock:
            self.lock = lock.fileno()
            wait_for(lock)
            if not self.is_whole():  # another process may have made it meanwhile
                self.make()
        return self.home

    def check_python(self) -> None:
        first, last = PYTHONS[self.platform]
        here = sys.version_info[:2]
        if not first <= here <= last:
            asked = f"Python {dotted(first)} to {dotted(last)}"
            raise Stop(f"needs {asked}, this is {dotted(here)}; PYTHON=... names another")
        for module in ("venv", "ensurepip"):
            if importlib.util.find_spec(module) is None:
                debian = f"on Debian and Ubuntu it is in python{dotted(here)}-venv"
                raise Stop(f"{sys.executable} has no {module}; {debian}")

    # What it consists of ------------------------------------------------------------------------

    def wanted(self) -> dict:
        """What it is made from, as the stamp of a whole one has it."""
        lists = {file: (HOUSE / file).read_text() for file in (*self.files, BUILT_WITH)}
        torch = [] if self.beside else [pins(SGLANG)["torch"], *pins(TORCH_FOR_CUDA).values()]
        return {"python": sys.version.split()[0], "torch": torch, "lists": lists}

    def kept(self) -> dict:
        """The stamp; nothing if it is not whole."""
        try:
            return json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}

    def is_whole(self) -> bool:
        return self.kept() == self.wanted() and all(map(is_installed, self.releases))

    # How it is made -----------------------------------------------------------------------------

    def make(self) -> None:
        self.log.write_text("")
        kept, wanted = self.kept(), self.wanted()
        same = all(kept.get(part) == wanted[part] for part in ("python", "torch"))
        if same and not self.home.is_symlink():  # a link leads to another checkout's
            say(f"{self.home}: its lists have changed; what differs is installed")
            self.stamp.unlink()
            self.install(*self.files)
            self.uninstall_others()
        else:
            self.announce()
            remove(self.home)
            self.make_venv()
            if not self.beside:
                self.install_torch()
            self.install(*self.files)
        if self.beside and (needed := self.lacking()):
            self.install_pins(*needed)
        self.install_packages_of_releases()
        self.stamp.write_text(json.dumps(wanted))

    def announce(self) -> None:
        parts = ["cpu"] if not self.beside else ["tools", "accuracy"][: len(self.files)]
        download, disk = (sum(SIZES[part][i] for part in parts) for i in (0, 1))
        say(f"{self.home}, once: {download:.1f} GB to download, {disk:.1f} GB on the disk")
        check_space(disk)

    def make_venv(self) -> None:
        """On a GPU one that sees the packages of the Python that makes it.

        The ROCm images' is itself a virtual environment, and what venv calls the system's packages
        are those of the Python below it: no torch, no sglang. Editable installs are .pth files, so
        its folder is read as one with packages.
        """
        within = sys.prefix != sys.base_prefix
        seen = ["--system-site-packages"] if self.beside and not within else []
        if self.call(sys.executable, "-m", "venv", *seen, str(self.home)):
            self.explain()
        if self.beside and within:
            folder, theirs = (purelib(python) for python in (self.python, sys.executable))
            Path(folder, "image.pth").write_text(f"import site; site.addsitedir({theirs!r})\n")

    def install_torch(self) -> None:
        torch = pins(SGLANG)["torch"]
        say(f"{torch}+cpu")
        if self.pip("install", f"{torch}+cpu") == 0:
            return
        self.explain("No matching distribution found")
        download, disk = SIZES["torch for CUDA"]
        say(
            f"pip finds no {torch} without CUDA; the index's build needs CUDA's libraries: "
            f"{download:.1f} GB more to download, {disk:.1f} GB more on the disk. "
            "PIP_EXTRA_INDEX_URL names an index with builds for the CPU"
        )
        check_space(disk)
        self.install(TORCH_FOR_CUDA)

    def install(self, *files: str) -> None:
        say(", ".join(files))
        self.install_pins(*(word for file in files for word in ("-r", str(HOUSE / file))))

    def install_pins(self, *words: str) -> None:
        if self.pip("install", *words):
            self.explain()

    def lacking(self) -> list[str]:
        """What the added packages need and the machine has none of, as pins of any list."""
        known = pins(ACCURACY) | pins(SGLANG)
        added = {name for file in self.files for name in pins(file)}
        told = subprocess.run(
            [self.python, "-m", "pip", "check"], capture_output=True, text=True, check=False
        ).stdout
        found = re.findall(r"^(\S+) \S+ requires (\S+), which is not installed\.$", told, re.M)
        needed = {canonical(need) for one, need in found if canonical(one) in added}
        if unknown := ", ".join(sorted(needed - known.keys())):
            raise Stop(f"{unknown}: needed, not on this machine, and no list pins it", FAILED)
        return [known[name] for name in sorted(needed)]

    def uninstall_others(self) -> None:
        """What lists named before and name no longer."""
        keep = {"pip", "setuptools"}
        for file in (SGLANG, TOOLS, ACCURACY, BUILT_WITH, TORCH_FOR_CUDA):
            keep |= pins(file).keys()
        told = subprocess.run(
            [self.python, "-m", "pip", "list", "--local", "--format=json"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        if others := [p["name"] for p in json.loads(told) if canonical(p["name"]) not in keep]:
            self.pip("uninstall", "--yes", *others)

    def install_packages_of_releases(self) -> None:
        """What a release pins otherwise than the environment, each release's in its own folder."""
        for file in self.releases:
            if is_installed(file):
                continue
            folder = folder_of(file)
            unfinished = folder.with_name(folder.name + ".unfinished")
            remove(unfinished)
            self.install_pins("--target", str(unfinished), "-r", str(file))
            shutil.copy(file, unfinished / "requirements.txt")
            remove(folder)
            unfinished.rename(folder)

    def pip(self, verb: str, *words: str) -> int:
        options = ["--disable-pip-version-check", "--no-input"]
        if verb == "install":
            options += ["--no-deps", "--no-compile"]  # ci/test keeps bytecode elsewhere
        return self.call(self.python, "-m", "pip", verb, *options, *words)

    def call(self, *command: str | Path) -> int:
        """What it prints goes into the log. It holds the lock, too: killed, we leave it running."""
        only = str(HOUSE / BUILT_WITH)  # what pip builds packages with, pinned as well
        constrained = {"PIP_CONSTRAINT": only, "PIP_BUILD_CONSTRAINT": only}
        with self.log.open("a") as log:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
                env=os.environ | constrained, pass_fds=[self.lock],
            ).returncode  # fmt: skip

    def explain(self, expected: str = "") -> None:
        """Why pip failed; nothing if it is what was expected."""
        text = self.log.read_text(errors="replace")
        for form, said in IN_PIPS_LOG.items():
            if re.search(form, text):
                raise Stop(f"{said} ({self.log})", FAILED)
        errors = re.findall(r"^(?:ERROR|error): (.*)", text, re.M)
        if expected and any(expected in each for each in errors):
            return
        last = errors[-1][:300] if errors else "pip and venv give no reason"
        raise Stop(f"could not be made: {last} ({self.log})", FAILED)


def say(text: str) -> None:
    print(f"== environment: {text}", file=sys.stderr, flush=True)


def remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def folder_of(file: Path) -> Path:
    return BUILD / f"packages-{file.stem.removeprefix('requirements-')}"


def is_installed(file: Path) -> bool:
    kept = folder_of(file) / "requirements.txt"
    return kept.is_file() and kept.read_bytes() == file.read_bytes()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    """{name: the line that pins it}"""
    lines = [line.partition("#")[0].strip() for line in (HOUSE / file).read_text().splitlines()]
    return {canonical(line.partition("==")[0]): line for line in lines if line}


def purelib(python: str | Path) -> str:
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    told = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def check_space(disk: float) -> None:
    free = shutil.disk_usage(BUILD).free / 1e9
    if free < disk:
        raise Stop(f"{BUILD} has {free:.1f} GB free, {disk:.1f} are needed", FAILED)


def wait_for(lock) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another command, which is making it")
        fcntl.flock(lock, fcntl.LOCK_EX)


if __name__ == "__main__":
    sys.exit(run("environment", main))
