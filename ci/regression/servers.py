"""A real sglang server for one arm: started and ended here, or given by URL.

Interrupted, failed, killed or done, a started server and all of its processes are ended: guard.py
stands between.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import Refused, RunFailed

POLL_SECONDS = 0.5
END_SECONDS = 20  # for a server to end by itself, before it is killed
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
GUARD = str(Path(__file__).with_name("guard.py"))
SHOWN_LINES = 15
# Compiled kernels of one arm must never serve the other.
CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TILELANG_CACHE_DIR": "tilelang",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
}
DEFAULT_LAUNCHER = "{python} -m sglang.launch_server"


@dataclass(frozen=True)
class Arm:
    """One side of the comparison. With a `url` nothing is started and the rest is not used."""

    name: str  # "pristine" or "patched"
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    tree: Path | None = None  # the folder that holds the sglang package; None: what python imports
    url: str | None = None

    def command(self, launcher: str, port: int) -> list[str]:
        return [
            *launched(launcher, self.tree),
            *self.arguments,
            *("--host", "127.0.0.1", "--port", str(port)),
        ]

    def variables(self, caches: Path | None = None) -> dict[str, str]:
        result = {**os.environ, "SGLANG_USE_AITER": "1", **self.environment}
        if self.tree is not None:
            path = [str(self.tree), os.environ.get("PYTHONPATH", "")]
            result["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        if caches is not None:
            result |= {name: str(caches / self.name / kind) for name, kind in CACHES.items()}
        return result


def launched(launcher: str, tree: Path | None) -> list[str]:
    """The words of a command with {python} and {tree} filled in. Raises Refused."""
    known = {"python": sys.executable, "tree": str(tree)}
    try:
        words = [word.format(**known) for word in shlex.split(launcher)]
    except (ValueError, LookupError) as error:
        raise Refused(
            f"--launcher {launcher!r}: {error!r}; it is a command in which {{python}} and {{tree}} "
            f"are filled in, by default {DEFAULT_LAUNCHER!r}"
        ) from None
    if not words:
        raise Refused(f"--launcher is empty; by default it is {DEFAULT_LAUNCHER!r}")
    return words


@contextlib.contextmanager
def serving(arm: Arm, launcher: str, work: Path, log: Path, seconds: float) -> Iterator[str]:
    """The URL of a server of `arm` that is ready. `seconds`: how long a start may take."""
    if arm.url is not None:
        ready(arm.url, seconds)
        yield arm.url
        return
    port = free_port()
    # Isolated: what PYTHONPATH has is the server's.
    command = [sys.executable, "-I", GUARD, str(END_SECONDS), *arm.command(launcher, port)]
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,  # held open until the server is to end
            env=arm.variables(work / "caches"),
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        ready(url, seconds, process, log)
        yield url
        if process.poll() is not None:
            raise RunFailed(f"the {arm.name} server ended by itself; {tail(log)}")
    finally:
        end(process)


def ready(
    url: str,
    seconds: float,
    process: subprocess.Popen[bytes] | None = None,
    log: Path | None = None,
) -> None:
    """Wait until the server answers; raises RunFailed when it has ended or the time is over."""
    until = time.monotonic() + seconds
    while True:
        try:
            with _opened(f"{url}/health", 30) as answer:
                if answer.status == 200:
                    return
        except (OSError, ValueError):  # not there yet, or there and still starting (503)
            pass
        said = f"; {tail(log)}" if log else ""
        if process is not None and process.poll() is not None:
            raise RunFailed(f"the server ended with {process.returncode} while starting{said}")
        if time.monotonic() > until:
            raise RunFailed(f"{url} was not healthy after {seconds:.0f} s{said}")
        time.sleep(POLL_SECONDS)


def _opened(url: str, seconds: float) -> Any:
    """Of a server, which is asked directly, as lm-eval's transport does: no proxy knows it."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=seconds)


def get(url: str, path: str) -> Any:
    """The JSON of a GET; raises RunFailed."""
    try:
        with _opened(f"{url}{path}", 60) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise RunFailed(f"{url}{path}: {error}") from None


def end(process: subprocess.Popen[bytes]) -> None:
    """End the server and every process that it has begun."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(3 * END_SECONDS)
    except subprocess.TimeoutExpired:  # a process that no signal ends, as one that waits for a GPU
        process.kill()
        process.wait()


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
    return f"the end of {log}:\n" + "\n".join(lines)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """A job that is cancelled, a terminal that is closed: servers are ended as after a Ctrl-C.

    The first signal interrupts; further ones, while the servers end, are heard and change nothing.
    """
    told = False

    def interrupt(*_: object) -> None:
        nonlocal told
        if not told:
            told = True
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
