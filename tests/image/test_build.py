"""Catches an image built from something else than its labels say, and refusals without help."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.image.layout import DIGEST, ROOT, build_arguments, instructions, stub

BUILD = ROOT / "ci/image/build.py"
# Answers as each of the engines: a digest for tags that it knows, and it notes what it is told.
ENGINE = f"""
case "$*" in
    version | info) echo "no daemon, no storage" >&2; exit "${{WORKS:-0}}" ;;
esac
echo "$@" >>"${{0%/*}}/commands"
case "$*" in
    *v0.5.8*) echo "not found" >&2; exit 1 ;;
    *inspect*) echo "{DIGEST}" ;;
    build*) exit "${{BUILDS:-0}}" ;;
esac
"""
ENGINES = ("docker", "podman", "buildah")
NAME = "docker.io/lmsysorg/sglang:v0.5.10.post1-rocm720-mi35x"
GIVEN = ("--release", "0.5.10.post1", "--arch", "gfx950", "--rocm", "7.2")


def run(tmp_path, *arguments: str, engines: Sequence[str] = ("docker",), **environment: str):
    """build.py on a machine that has these engines and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name in engines:
        stub(folder, name, ENGINE)
    command = [sys.executable, BUILD, *arguments]
    given = {"PATH": str(folder)} | environment
    return subprocess.run(command, env=given, capture_output=True, text=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_released_image_is_pinned_by_the_digest_of_its_tag(engine, tmp_path):
    done = run(tmp_path, *GIVEN, engines=[engine])
    assert done.returncode == 0, done.stderr
    *asked, command = (tmp_path / "bin/commands").read_text().splitlines()
    assert all(NAME in each.split() for each in asked)
    assert f"BASE={NAME}@{DIGEST}" in command
    assert f"BASE_DIGEST={DIGEST}" in command
    assert done.stdout == "sglang-rocm-patches:0.5.10.post1-rocm720-mi35x\n"


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("rocm", ["7.0", "7.2"])
def test_each_release_arch_and_rocm_has_its_own_base(release, rocm, arch, tmp_path):
    given = ("--release", release, "--arch", arch, "--rocm", rocm, "--print")
    words = shlex.split(run(tmp_path, *given).stdout)
    gpu = {"gfx942": "mi30x", "gfx950": "mi35x"}[arch]
    tag = f"v{release}-rocm{rocm.replace('.', '')}0-{gpu}"
    assert f"BASE=docker.io/lmsysorg/sglang:{tag}@DIGEST" in words
    assert f"ARCH={arch}" in words


CHOICES = {
    "the first that is there": (("podman", "buildah"), (), {}, "podman"),
    "named by an option": (ENGINES, ("--engine", "buildah"), {}, "buildah"),
    "named by the environment": (ENGINES, (), {"CONTAINER_ENGINE": "podman"}, "podman"),
    "option over environment": (
        ENGINES, ("--engine", "docker"), {"CONTAINER_ENGINE": "podman"}, "docker",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_the_engine_is_chosen_or_named_and_told(case, tmp_path):
    engines, arguments, environment, expected = CHOICES[case]
    done = run(tmp_path, *GIVEN, *arguments, engines=engines, **environment)
    assert (done.returncode, done.stderr) == (0, f"build.py: with {expected}\n")


def test_an_engine_that_does_not_work_is_passed_over(tmp_path):
    run(tmp_path, *GIVEN, engines=["podman"])
    stub(tmp_path / "bin", "docker", "exit 1")  # no daemon
    done = run(tmp_path, *GIVEN, engines=[])
    assert (done.returncode, done.stderr) == (0, "build.py: with podman\n")


@pytest.mark.parametrize("named", [(), ("--engine", "docker")])
def test_without_an_engine_that_works_each_is_told_with_its_reason(named, tmp_path):
    done = run(tmp_path, *GIVEN, *named, WORKS="1")
    assert done.returncode == 1
    assert "docker: no daemon, no storage\n" in done.stderr
    assert ("buildah: not installed\n" in done.stderr) == (not named)
    assert "--engine or CONTAINER_ENGINE; --print shows the command" in done.stderr


def test_the_command_can_be_had_without_an_engine_or_a_registry(tmp_path):
    done = run(tmp_path, *GIVEN, "--print", engines=[])
    words = shlex.split(done.stdout)
    assert words[:2] == ["docker", "build"]
    assert f"BASE={NAME}@DIGEST" in words
    assert done.stderr == f"DIGEST stands for what {NAME} has now, as sha256:...\n"
    done = run(tmp_path, *GIVEN, "--base", f"x@{DIGEST}", "--print", engines=[])
    assert f"BASE_DIGEST={DIGEST}" in shlex.split(done.stdout)
    assert done.stderr == ""


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
    "no such release": (("--release", "0.5.8"), 2, "covered are: 0.5.9, 0.5.10, 0.5.10.post1"),
    "no such engine": (("--engine", "nerdctl"), 2, "invalid choice: 'nerdctl'"),
    "no such slug": (("--slug", "indexes"), 2, "has no patch indexes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_refused_with_what_helps(case, tmp_path):
    arguments, code, sentence = REFUSED[case]
    done = run(tmp_path, *GIVEN, *arguments)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_engine_in_the_environment_is_refused_by_its_variable(tmp_path):
    done = run(tmp_path, *GIVEN, "--print", CONTAINER_ENGINE="nerdctl")
    assert done.returncode == 2
    assert "CONTAINER_ENGINE is 'nerdctl': it must be one of docker, podman, buildah" in done.stderr


def test_a_build_that_fails_fails(tmp_path):
    assert run(tmp_path, *GIVEN, BUILDS="1").returncode == 1


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
