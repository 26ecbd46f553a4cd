"""Catches an image built from something else than its labels say, and refusals without help."""

import json
import re
import subprocess
import sys

import pytest

from tests.image.layout import DIGEST, ROOT, build_arguments, instructions, stub

BUILD = ROOT / "ci/image/build.py"
# Answers as docker does: a digest for tags that it knows, and it notes each command.
DOCKER = f"""
echo "$@" >>"$(dirname "$0")/commands"
case "$*" in
    *imagetools*v0.5.8*) echo "not found" >&2; exit 1 ;;
    *imagetools*) echo "{DIGEST}" ;;
    build*) exit "${{DOCKER_BUILD:-0}}" ;;
esac
"""


def run(tmp_path, *arguments: str, **environment: str):
    given = stub(tmp_path / "bin", "docker", DOCKER) | environment
    command = [sys.executable, BUILD, *arguments]
    return subprocess.run(command, env=given, capture_output=True, text=True)


GIVEN = ("--release", "0.5.10.post1", "--arch", "gfx950", "--rocm", "7.2")


def test_the_released_image_is_pinned_by_the_digest_of_its_tag(tmp_path):
    done = run(tmp_path, *GIVEN)
    assert done.returncode == 0, done.stderr
    name = "v0.5.10.post1-rocm720-mi35x"
    inspect, command = (tmp_path / "bin/commands").read_text().splitlines()
    assert f"lmsysorg/sglang:{name}" in inspect
    assert f"BASE=lmsysorg/sglang:{name}@{DIGEST}" in command
    assert f"BASE_DIGEST={DIGEST}" in command
    assert done.stdout == "sglang-rocm-patches:0.5.10.post1-rocm720-mi35x\n"


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("rocm", ["7.0", "7.2"])
def test_each_release_arch_and_rocm_has_its_own_base(release, rocm, arch, tmp_path):
    given = ("--release", release, "--arch", arch, "--rocm", rocm, "--print")
    words = json.loads(run(tmp_path, *given).stdout)
    gpu = {"gfx942": "mi30x", "gfx950": "mi35x"}[arch]
    tag = f"v{release}-rocm{rocm.replace('.', '')}0-{gpu}"
    assert f"BASE=lmsysorg/sglang:{tag}@{DIGEST}" in words
    assert f"ARCH={arch}" in words


def test_every_argument_of_the_dockerfile_is_passed_and_no_other():
    declared = {r for w, r in instructions((ROOT / "rocm.Dockerfile").read_text()) if w == "ARG"}
    assert set(build_arguments("0.5.10.post1")) == declared


def test_what_is_copied_is_there_and_let_through_to_the_build():
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    for word, rest in instructions((ROOT / "rocm.Dockerfile").read_text()):
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in let_through


def test_every_run_step_is_a_script_that_is_there():
    steps = [r for w, r in instructions((ROOT / "rocm.Dockerfile").read_text()) if w == "RUN"]
    assert len(steps) == 3
    for step in steps:
        script = re.match(r"/opt/rocm-patches/(ci/image/\w+\.sh) [^;&|]*$", step)[1]
        assert (ROOT / script).stat().st_mode & 0o111, script


REFUSED = {
    "no such tag": (("--base", "lmsysorg/sglang:v0.5.8-rocm720-mi35x"), 1, "is there such a tag?"),
    "half a digest": (("--base", "a@sha256:12"), 1, "64 hexadecimal digits"),
    "no such release": (("--release", "0.5.8"), 2, "covered are: 0.5.10, 0.5.10.post1, 0.5.9"),
    "no such slug": (("--slug", "indexes"), 2, "has no patch indexes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_refused_with_what_helps(case, tmp_path):
    arguments, code, sentence = REFUSED[case]
    done = run(tmp_path, *GIVEN, *arguments)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_without_docker_the_command_can_still_be_had(tmp_path):
    base = f"x@{DIGEST}"
    done = run(tmp_path, *GIVEN, "--base", base, "--print", PATH="/nonexistent")
    assert json.loads(done.stdout)[:2] == ["docker", "build"]
    done = run(tmp_path, *GIVEN, "--base", base, PATH="/nonexistent")
    assert done.returncode == 1
    assert "there is no docker here" in done.stderr


def test_a_build_that_fails_fails(tmp_path):
    assert run(tmp_path, *GIVEN, DOCKER_BUILD="1").returncode == 1


@pytest.mark.parametrize(
    ("base", "digest"),
    [("lmsysorg/sglang:v0.5.9", ""), ("a:b", DIGEST), (f"a@{DIGEST}", DIGEST[:-1] + "4")],
)
def test_a_base_whose_label_would_not_be_true_is_refused(base, digest):
    command = [ROOT / "ci/image/pinned.sh", base, digest]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "give BASE=IMAGE@sha256:... and BASE_DIGEST=sha256:..." in done.stderr
    command = [ROOT / "ci/image/pinned.sh", f"a:b@{DIGEST}", DIGEST]
    assert subprocess.run(command).returncode == 0


@pytest.mark.slow
def test_the_source_target_rebuilds_what_is_compiled_and_patches_it(rebuilt):
    made, began, outcome = rebuilt
    assert outcome.returncode == 0, outcome.stderr
    for folder in ("sglang/sgl-kernel", "aiter"):
        assert (made.workspace / folder / "built").read_text() == "gfx950"
    assert (made.tilelang / "build/lib/libtilelang.so").stat().st_mtime > began
    assert not list(made.site.glob("__editable___amd_aiter*")), "aiter is installed by a hook again"
    imports = "import aiter; aiter.dynamic_per_tensor_quant"
    assert made.run("python3", "-c", imports).returncode == 0
