"""Runs one server and leaves none of its processes behind, however it ends.

    python3 -I ci/regression/guard.py SECONDS COMMAND [ARGUMENT...]

Whoever starts this holds the other end of its standard input. When that end closes, since its owner
asks for it or is dead, killed with no time to clean up, the server and all of its descendants are
ended; so they are when this is told to end by a signal, and when the server itself ends. They get
SECONDS to end by themselves. Descendants that lost their parent or made a session of their own are
found as well: this process adopts them (PR_SET_CHILD_SUBREAPER of Linux). If this one is killed,
the kernel kills the server.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time

import psutil  # type: ignore[import-untyped]

POLL_SECONDS = 0.1
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
libc = ctypes.CDLL(None, use_errno=True)


def main(seconds: float, command: list[str]) -> int:
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ended, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # each wakes the loop below
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    with selectors.DefaultSelector() as watched:
        watched.register(ended, selectors.EVENT_READ)
        watched.register(sys.stdin, selectors.EVENT_READ)
        while server.poll() is None:
            woken = {key.fileobj for key, _ in watched.select()}
            if sys.stdin in woken or set(os.read(ended, 4096)) - {signal.SIGCHLD}:
                break
    end(server, seconds)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def end(server: "subprocess.Popen[bytes]", patience: float) -> None:
    """Ask all descendants to end, then kill what is left, until nothing is."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + patience
        asked: set[psutil.Process] = set()
        while left := _left(server):
            for process in set(left) - asked:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            asked |= set(left)
            if time.monotonic() > until:
                break
            time.sleep(POLL_SECONDS)


def _left(server: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """All descendants that still run; the ended ones among the adopted are waited for."""
    server.poll()
    found = psutil.Process().children(recursive=True)
    left = []
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
            elif process.pid != server.pid and process.ppid() == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
    return left


def _die_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
