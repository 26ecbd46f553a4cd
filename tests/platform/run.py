"""Run a script against an sglang tree, as if there were an AMD GPU.

    python -m tests.platform.run --tree TREE [--platform cpu] [--arch gfx942] SCRIPT [ARGUMENT...]

TREE is the directory that holds the `sglang` package. Switches of slugs and other settings are
environment variables; those that begin with SGLANG_ are passed on.
"""

import argparse
import os
import sys
from typing import NoReturn

from ci.entry import needs, run

from . import value


def main() -> NoReturn:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.platform.run", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--tree", required=True)
    parser.add_argument(
        "--platform", choices=["rocm", "cuda", "cpu"], help="default: what is there"
    )
    parser.add_argument("--arch", choices=value.ARCHS)
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    needs("torch", "triton")
    from . import emulation

    platform = value.available(given.platform or value.choose(), given.arch)[0]
    switches = {name: text for name, text in os.environ.items() if name.startswith("SGLANG_")}
    environment = emulation.environment(platform, given.tree, **switches)
    command = [sys.executable, given.script, *given.arguments]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    sys.exit(run("tests.platform.run", main))
