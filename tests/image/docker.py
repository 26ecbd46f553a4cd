"""Stands in for docker in dry runs of workflows: a container is this machine, emulating the GPU.

It takes only options that it knows, so that a mistyped one is an error here as there. What would
take hours in a container is asked what it would do (--dry-run, pytest --collect-only); everything
else runs, or is noted alone with DOCKER_NOTES_ONLY. Paths of the image lead to `$IMAGE_ROOT`, /work
to the checkout.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.image.layout import DIGEST

WITH_VALUE = {
    "--device", "--group-add", "--shm-size", "--ulimit", "--cap-add", "--security-opt", "--volume",
    "--workdir", "--env", "--name",
}  # fmt: skip
WITHOUT = {"--rm", "--init"}
BUILD = {"--file", "--target", "--build-arg", "--tag"}
LONG = ("ci/parity.py", "ci/gsm8k.py", "ci/throughput.py")


def main(words: list[str]) -> int:
    with open(os.environ["DOCKER_LOG"], "a") as log:
        print(*words, file=log)
    if words[:3] == ["buildx", "imagetools", "inspect"]:
        print(DIGEST)
        return 0
    if words[:2] == ["image", "inspect"] or words[1:3] == ["rm", "--force"]:
        return 0
    if words[0] == "build":
        options, rest = _options(words[1:], BUILD, set())
        assert rest == ["."], rest
        assert Path(dict(options)["--file"]).is_file()
        return 0
    assert words[0] == "run", words
    options, (_image, *command) = _options(words[1:], WITH_VALUE, WITHOUT)
    if os.environ.get("DOCKER_NOTES_ONLY"):
        return 0
    volumes = dict(reversed(v.split(":")) for name, v in options if name == "--volume")
    work = volumes["/work"]
    root = os.environ["IMAGE_ROOT"]
    for told, here in (("/work", work), ("/opt/rocm-patches", work), ("/sgl-workspace", root)):
        command = [word.replace(told, here) for word in command]
    if any(word in LONG for word in command):
        command.append("--dry-run")
    given = dict(v.split("=", 1) for name, v in options if name == "--env" and "=" in v)
    if any(word.endswith("smoke.py") for word in command):
        given["PYTHONPATH"] = os.environ["EMULATION"]
    return subprocess.run(command, cwd=work, env=os.environ | given).returncode


def _options(words: list[str], with_value: set[str], without: set[str]):
    """The options before the first word that is none, and the words from there."""
    options = []
    while words and words[0].startswith("-"):
        if words[0] in without:
            options.append((words.pop(0), ""))
        elif words[0] in with_value:
            options.append((words.pop(0), words.pop(0)))
        else:
            raise ValueError(f"docker option {words[0]}: tests/image/docker.py does not know it")
    return options, words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
