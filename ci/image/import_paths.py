#!/usr/bin/env python3
"""Give editable installs priority over folders of the same name in the user's directory.

pip's editable installs (PEP 660) are found by an import hook that comes after the search path. In
/sgl-workspace the path finds the *checkout* `aiter/` first: a folder without __init__.py, so a
namespace package with nothing in it, and `import aiter` gives that
(https://github.com/sgl-project/sglang/pull/22363). A folder on the path that holds the real package
wins over every namespace package, wherever it stands there; so each shadowed install gets its
folder into a .pth file, which no shell and no PYTHONPATH can lose.

Exit codes: 0 done or nothing to do, 1 a package is shadowed still, 2 wrong usage.
"""

import argparse
import ast
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

PTH = "rocm_patches_editable_installs.pth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workspace", type=Path, default=Path("/sgl-workspace"))
    workspace = parser.parse_args().workspace
    if not workspace.is_dir():
        sys.exit(f"import_paths.py: there is no {workspace}: is BASE a released ROCm image?")
    site = Path(sysconfig.get_path("purelib"))
    shadowed = {
        name: package
        for name, package in editable_installs(site).items()
        if (workspace / name).is_dir() and found_from(workspace, name) != package / "__init__.py"
    }
    if shadowed:
        folders = sorted({str(package.parent) for package in shadowed.values()})
        (site / PTH).write_text("".join(f"{folder}\n" for folder in folders))
    for name, package in shadowed.items():
        found = found_from(workspace, name)
        if found != package / "__init__.py":
            sys.exit(
                f"import_paths.py: in {workspace}, `import {name}` should be {package}\n"
                f"  it is {found or 'a namespace package'}, {site / PTH} notwithstanding"
            )
        print(f"{name}: {package}, no longer hidden by {workspace / name}")
    if not shadowed:
        print(f"nothing is hidden in {workspace}")


def editable_installs(site: Path) -> dict[str, Path]:
    """The package folders that the import hooks in `site` stand for, by name."""
    found = {}
    for hook in sorted(site.glob("__editable___*_finder.py")):
        mapping = re.search(r"^MAPPING\b[^=]*= (\{.*?\})", hook.read_text(), re.M | re.S)
        for name, folder in ast.literal_eval(mapping[1]).items() if mapping else ():
            if (Path(folder) / "__init__.py").is_file():
                found[name] = Path(folder)
    return found


def found_from(folder: Path, name: str) -> Path | None:
    """The file that `import name` would run there; a new interpreter reads the .pth files anew."""
    program = (
        "import importlib.util, sys; spec = importlib.util.find_spec(sys.argv[1]);"
        "print(spec.origin or '' if spec else '')"
    )
    command = [sys.executable, "-c", program, name]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return Path(done.stdout.strip()) if done.stdout.strip() else None


if __name__ == "__main__":
    main()
