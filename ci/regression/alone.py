"""One process at a time for one result."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import Refused


@contextlib.contextmanager
def alone(output: Path, work: Path) -> Iterator[None]:
    """Raises Refused where another process writes to `output`, or works in the folder `work`."""
    with contextlib.ExitStack() as stack:
        for path in (output.with_suffix(".lock"), work / "lock"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(path, "a+"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise Refused(
                    f"process {lock.read().strip() or 'of another machine'} writes to {output} or "
                    f"works in {work} now: two never share one --output; wait for it, or choose "
                    "another --output"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        yield
