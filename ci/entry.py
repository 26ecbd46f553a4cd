"""What all commands of the project share: one set of exit codes, and a sentence where something is
missing, never a traceback.

apply.py has the first three and INTERRUPTED by itself: it runs where the project is not.
"""

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable

from patchset.errors import Refused

DONE = 0
WRONG = 1  # what was checked is not as it should be: red, stale, apart, a regression
REFUSED = 2  # wrong usage, or something that is needed is missing; nothing was done
INCONCLUSIVE = 3
FAILED = 4  # begun and not finished: that says nothing about what was checked
INTERRUPTED = 130
UNREAD = 141  # whoever read the output has left, as `| head` does


class Stop(Exception):  # noqa: N818  an outcome, not a defect
    """The command ends here, with this sentence."""

    def __init__(self, said: str, code: int = REFUSED):
        super().__init__(said)
        self.code = code


def needs(*packages: str) -> None:
    """Before work begins that would only find out on the way."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(name=package)


def run(name: str, does: Callable[[], int]) -> int:
    """The exit code of a command that `does` what is asked."""
    try:
        code = does()
        sys.stdout.flush()
    except Stop as stop:
        return _ended(name, str(stop), stop.code)
    except Refused as refusal:
        return _ended(name, str(refusal), REFUSED)
    except ModuleNotFoundError as lacking:
        package = str(lacking.name).partition(".")[0]
        said = f"{sys.executable} has no {package}: source ci/environment.sh cpu, or cuda or rocm"
        return _ended(name, f"{said} on a machine with a GPU", REFUSED)
    except BrokenPipeError:
        # Python writes what is left once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except KeyboardInterrupt:
        return _ended(name, "interrupted", INTERRUPTED)
    except Exception:
        traceback.print_exc()
        return _ended(name, "failed by a fault of this program, see above", FAILED)
    return code


def needs_first(name: str, *packages: str) -> None:
    """The same for a module that imports them itself: called before it does."""

    def asks() -> int:
        needs(*packages)
        return DONE

    if code := run(name, asks):
        sys.exit(code)


def _ended(name: str, said: str, code: int) -> int:
    print(f"{name}: {said}", file=sys.stderr)
    return code
