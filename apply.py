"""Turns the ROCm optimisations on and off in an sglang tree; `apply.py --help` says how."""

import os
import sys

if sys.version_info < (3, 10):  # noqa: UP036  # this file alone is read by any Python
    version = sys.version.split()[0]
    sys.exit("apply.py needs Python 3.10 or newer; " + sys.executable + " is " + version)

if __name__ == "__main__":
    try:  # around the imports too: Ctrl-C may come at once
        import signal

        # There is nothing to undo before main, and an exception in the midst of an import may come
        # out as another: Python wraps one in __set_name__ (https://bugs.python.org/issue28214).
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        if on_ctrl_c is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        from pathlib import Path

        home = Path(__file__).resolve().parent
        sys.path.insert(0, str(home))  # `python3 -I` leaves the script's own folder out
        from patchset.cli import main

        signal.signal(signal.SIGINT, on_ctrl_c)
        sys.exit(main(sys.argv[1:], home))
    except KeyboardInterrupt:
        sys.exit(130)
