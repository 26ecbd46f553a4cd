"""Catches a build of rocm.Dockerfile that leaves a released image unpatched, broken or changed."""

import json
from pathlib import Path

import pytest

from patchset import series
from tests.image.layout import Image, build_arguments, light
from tests.platform.trees import ROOT
from tests.tool.synthetic import git

pytestmark = pytest.mark.slow
PATCHSET = series.load(ROOT)
IMPORT_AITER = "import aiter; aiter.dynamic_per_tensor_quant"


def test_the_layout_has_the_faults_of_the_released_images(untouched):
    found = untouched.run("python3", "-c", IMPORT_AITER)
    assert "has no attribute 'dynamic_per_tensor_quant'" in found.stderr
    assert untouched.run("python3", "-c", IMPORT_AITER, cwd=untouched.root).returncode == 0
    dirt = git("status", "--short", cwd=untouched.workspace / "sglang").decode()
    assert " M python/pyproject.toml" in dirt
    assert "?? python/sglang/_version.py" in dirt
    assert "MI300X_VF" in dirt


def test_a_build_turns_every_slug_on_and_changes_nothing_else(built, release):
    image, before, outcome = built
    assert (outcome.returncode, outcome.stderr) == (0, "")
    verified = image.run("python3", image.root / "opt/rocm-patches/apply.py", "verify")
    assert verified.returncode == 0, verified.stderr
    after = image.files()
    tree = "sgl-workspace/sglang/python/"
    touched = {p for p in after if before.get(p) != after[p] and "opt/rocm-patches/" not in p}
    state = status(image)
    expected = {tree + file["path"] for file in state["files"]}
    assert touched <= expected | {pth(image)}
    assert before.keys() <= after.keys()
    assert on(state) == set(PATCHSET.release(release).patches)


def test_after_a_build_aiter_is_imported_wherever_and_however_python_starts(built):
    image, _, _ = built
    for command in (
        ("python3", "-c", IMPORT_AITER),
        ("sh", "-c", f"python3 -c '{IMPORT_AITER}'"),
        ("env", "PYTHONPATH=/opt/tilelang", "python3", "-c", IMPORT_AITER),
    ):
        for folder in (image.workspace, image.root, image.workspace / "sglang"):
            assert image.run(*command, cwd=folder).returncode == 0, (command, folder)


def test_the_labels_say_what_is_in_the_image(built, release):
    image, _, outcome = built
    base = build_arguments(release)["BASE"]
    assert outcome.labels == {
        "org.opencontainers.image.title": "sglang with ROCm patches",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": release,
        "org.opencontainers.image.base.name": base,
        "org.opencontainers.image.base.digest": base.split("@")[1],
        "org.sglang.rocm-patches.release": release,
        "org.sglang.rocm-patches.digest": status(image)["digest"],
        "org.sglang.rocm-patches.slugs": "all",
    }


def test_a_second_build_on_the_first_is_the_same_image(built, release, tmp_path):
    image, _, _ = built
    before = image.files()
    given = ("gfx950", release, PATCHSET.release(release).digest)
    done = image.script("layer.sh", *given, **light(tmp_path))
    assert done.returncode == 0, done.stderr
    assert image.files() == before


def test_a_build_of_one_slug_turns_on_that_one_alone(rebuilt):
    image, _, outcome = rebuilt
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.labels["org.sglang.rocm-patches.slugs"] == "indexer"
    assert on(status(image)) == {"indexer"}


DIGEST = PATCHSET.release("0.5.10.post1").digest
REFUSED = {
    "another release": (("0.5.9", DIGEST), "it is 0.5.10.post1"),
    "no release": (("0.5.8", DIGEST), "RELEASE is one of 0.5.10, 0.5.10.post1, 0.5.12"),
    "another patch set": (("0.5.10", "f" * 64), "the label would say ffffffff"),
    "no digest": (("0.5.10", ""), "build with ci/image/build.py"),
    "no slug": (("0.5.10", DIGEST, "indexes"), "there is no slug 'indexes'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_with_what_helps(case, untouched):
    arguments, sentence = REFUSED[case]
    before = untouched.files()
    workspace = ("--workspace", untouched.workspace)
    release, digest, *slugs = arguments
    done = untouched.run(
        "python3", ROOT / "ci/image/install.py", *workspace,
        "--release", release, "--digest", digest, *slugs,
    )  # fmt: skip
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert untouched.files() == before


@pytest.mark.parametrize("script", ["layer.sh", "install.py", "import_paths.py"])
def test_a_base_without_a_workspace_is_no_released_image(script, untouched, tmp_path):
    given = {
        "layer.sh": ("gfx950", "0.5.10", DIGEST),
        "install.py": ("--release", "0.5.10", "--digest", DIGEST, "--workspace", tmp_path / "none"),
        "import_paths.py": ("--workspace", tmp_path / "none"),
    }[script]
    run = ("bash",) if script.endswith(".sh") else ("python3",)
    done = untouched.run(*run, ROOT / "ci/image" / script, *given, WORKSPACE=str(tmp_path / "none"))
    assert done.returncode == 1
    assert "released" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_snapshot_of_main_under_a_releases_name_is_refused(untouched):
    path = next(iter(PATCHSET.release("0.5.10").pristine_ids()))
    changed = untouched.tree.parent / path
    released = changed.read_bytes()
    changed.write_bytes(released + b"# main went on\n")
    try:
        before = untouched.files()
        done = untouched.script("layer.sh", "gfx950", "0.5.10", DIGEST)
        assert untouched.files() == before
    finally:
        changed.write_bytes(released)
    assert done.returncode == 1
    assert "dated ones are main of a day" in done.stderr
    assert "apply --near" in done.stderr


@pytest.mark.parametrize("change", ["replaced", "removed", "added"])
def test_a_package_that_the_layer_changed_fails_the_build(change, untouched, tmp_path):
    note = tmp_path / "note"
    assert untouched.script("smoke.py", "before", note).returncode == 0
    versions = json.loads(note.read_text())
    assert versions["torch"] == "2.9.1+rocm7.2.0"
    if change == "replaced":
        versions["torch"] = "2.9.1+cu128"
    elif change == "removed":
        versions["nvidia-nccl"] = "2.27"
    else:
        del versions["torch"]
    note.write_text(json.dumps(versions))
    done = untouched.script("smoke.py", "after", note, "--arch", "gfx950")
    assert done.returncode == 1
    assert (
        "nvidia-nccl: 2.27 before, absent now" if change == "removed" else "torch: "
    ) in done.stderr


@pytest.mark.parametrize("text", [None, "", "[1]"], ids=["missing", "empty", "another"])
def test_a_note_that_is_none_is_refused_in_a_sentence(text, untouched, tmp_path):
    note = tmp_path / "note"
    if text is not None:
        note.write_text(text)
    done = untouched.script("smoke.py", "after", note, "--arch", "gfx950")
    assert done.returncode == 1
    assert done.stderr.startswith(f"smoke.py: {note}: ")
    assert done.stderr.endswith(
        f"`smoke.py before {note}`, run ahead of the layer, notes the packages\n"
    )


def test_a_folder_that_hides_a_package_fails_the_build(untouched, tmp_path):
    note = tmp_path / "note"
    assert untouched.script("smoke.py", "before", note).returncode == 0
    done = untouched.script("smoke.py", "after", note, "--arch", "gfx950")
    assert done.returncode == 1
    assert "finds no package" in done.stderr


@pytest.fixture
def after(built, tmp_path):
    """What smoke.py makes of an image whose aiter begins with some other line."""
    image, _, _ = built
    aiter = image.workspace / "aiter/aiter/__init__.py"
    whole = aiter.read_text()

    def run(line: str):
        aiter.write_text(f"import os\n{line}\n{whole}")
        note, without = tmp_path / "note", light(tmp_path / "light")
        assert image.script("smoke.py", "before", note, **without).returncode == 0
        return image.script("smoke.py", "after", note, "--arch", "gfx950", **without)

    yield run
    aiter.write_text(whole)


@pytest.mark.skipif(Path("/dev/kfd").exists(), reason="nothing lacks a GPU here")
def test_what_needs_a_gpu_is_left_to_one_in_so_many_words(after):
    asks = "raise RuntimeError('Get GPU arch from rocminfo failed, as ' + os.environ['GPU_ARCHS'])"
    done = after(asks)
    assert done.returncode == 0, done.stderr
    assert "not imported: aiter needs a GPU, which is not here (Get GPU arch" in done.stdout
    assert "as gfx950); on one, run" in done.stdout
    assert "rocm patches" in done.stdout


def test_a_package_that_does_not_import_fails_the_build(after):
    done = after("from aiter import no_such_operator")
    assert done.returncode == 1
    assert "`import aiter` in" in done.stderr
    assert "no_such_operator" in done.stderr


def status(image: Image) -> dict:
    done = image.run("python3", ROOT / "apply.py", "status", "--json", "--tree", image.tree)
    return json.loads(done.stdout)


def on(state: dict) -> set[str]:
    return {slug for slug, value in state["state"].items() if value == "on"}


def pth(image: Image) -> str:
    return f"{image.site.relative_to(image.root)}/rocm_patches_editable_installs.pth"
