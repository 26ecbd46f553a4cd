"""The container engines that build an image: docker, podman and buildah.

buildah needs no daemon. Where a container may not start another one, STORAGE_DRIVER=vfs and
BUILDAH_ISOLATION=chroot, which buildah reads by itself, let it build as root all the same.
"""

import os
import re
import shutil
import subprocess

VARIABLE = "CONTAINER_ENGINE"
# What fails where an engine is installed and cannot build: no daemon, no storage.
WORKS = {"docker": ("version",), "podman": ("info",), "buildah": ("info",)}
# The last command prints the digest. docker asks the registry alone; the others have no command for
# that, so they pull the image, which the build needs anyway.
DIGEST = {
    "docker": (("buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}"),),
    "podman": (("pull", "--quiet"), ("image", "inspect", "--format", "{{.Digest}}")),
    "buildah": (
        ("pull", "--quiet"),
        ("inspect", "--type", "image", "--format", "{{.FromImageDigest}}"),
    ),
}


class EngineError(Exception):
    """One line an engine: why it cannot be used."""


def choose() -> str:
    """The first engine that is installed and works; raises EngineError."""
    reasons = []
    for engine in WORKS:
        try:
            check(engine)
        except EngineError as error:
            reasons.append(str(error))
        else:
            return engine
    raise EngineError("\n  ".join(reasons))


def check(engine: str) -> None:
    """Raises EngineError where `engine` cannot be used."""
    if shutil.which(engine) is None:
        raise EngineError(f"{engine}: not installed")
    done = _run(engine, *WORKS[engine])
    if done.returncode:
        raise EngineError(f"{engine}: {_last_line(done.stderr)}")


def preferred() -> str | None:
    """The engine that the environment names, if any."""
    return os.environ.get(VARIABLE) or None


def digest(engine: str, image: str) -> tuple[str | None, str]:
    """The digest that the tag has in its registry now; else None and what the engine said."""
    for words in DIGEST[engine]:
        done = _run(engine, *words, image)
        if done.returncode:
            return None, _last_line(done.stderr)
    found = done.stdout.strip()
    if re.fullmatch(r"sha256:[0-9a-f]{64}", found):
        return found, ""
    return None, found


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "no answer"
