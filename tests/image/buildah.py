"""rocm.Dockerfile really built, by buildah, on a base that is made here.

The base is the layout of tests/image/layout.py, made inside a container at the paths of a released
image. What it borrows from this machine is mounted read-only and is part of no image: /usr (bash,
git, a compiler, CMake) and the Python environment of the tests.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from tests.image.layout import ROOT
from tests.platform.trees import pristine_tree

LAY_OUT = """
from pathlib import Path
from tests.image import layout
made = layout.image(Path("/"), {release!r})
layout.give_sources(made)
layout.light(made.site)
"""


def unusable() -> str:
    """Why buildah cannot be used here, or nothing."""
    if shutil.which("buildah") is None:
        return "buildah is not installed: apt-get install buildah"
    if os.geteuid() != 0:
        return "buildah's chroot isolation needs root"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        return "this machine permits no mounts, which buildah needs"
    return ""


class Buildah(NamedTuple):
    folder: Path  # its configuration, and all that it stores

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "BUILDAH_ISOLATION": "chroot",
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
        }

    def __call__(self, *words: object) -> str:
        done = self.attempt("buildah", *words)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def attempt(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = list(map(str, words))
        given = self.environment
        return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)

    def base(self, release: str) -> str:
        """A released image as far as the tests know one, by its digest."""
        pristine_tree(release)  # fetched here, where there is a network
        container = self("from", "scratch")
        root = self.folder / "root"
        root.mkdir()
        for name in ("bin", "lib", "lib64", "sbin"):
            (root / name).symlink_to(f"usr/{name}")
        (root / "tmp").mkdir(mode=0o1777)
        self("copy", container, root, "/")
        shutil.rmtree(root)
        program = LAY_OUT.format(release=release)
        mounted = ("--volume", f"{ROOT}:{ROOT}:ro", "--env", f"PYTHONPATH={ROOT}")
        self("run", *mounted, container, "--", sys.executable, "-c", program)
        self("config", "--env", "PATH=/opt/venv/bin:/usr/bin:/bin", container)
        name = f"localhost/released:v{release}"
        self("commit", "--quiet", "--rm", container, name)
        digest = self("inspect", "--type", "image", "--format", "{{.FromImageDigest}}", name)
        return f"{name}@{digest}"

    def labels(self, image: str) -> dict[str, str]:
        return json.loads(self("inspect", "--type", "image", image))["OCIv1"]["config"]["Labels"]


def configured(folder: Path) -> Buildah:
    mounts = [Path("/usr"), Path("/etc/alternatives"), Path(sys.base_prefix)]
    mounts += [Path(sys.prefix), Path(sysconfig.get_path("purelib"))]
    mounts = [path.resolve() for path in mounts if path.is_dir()]
    volumes = [f"{path}:{path}:ro" for path in dict.fromkeys(mounts)]
    (folder / "containers.conf").write_text(f"[containers]\nvolumes = {json.dumps(volumes)}\n")
    stored = f'driver = "vfs"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/graph"\n'
    (folder / "storage.conf").write_text(f"[storage]\n{stored}")
    return Buildah(folder)
