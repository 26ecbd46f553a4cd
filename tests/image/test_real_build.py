"""Catches a rocm.Dockerfile that no container engine builds, or an image with other contents.

The base stands for a released image: it has that image's folders, checkouts and editable installs,
with their known faults. It cannot show

- that sgl-kernel, aiter and TileLang compile for a chip: sources that only note their settings
  stand in for the first two, two lines of C++ for the third
- that the image's own torch, triton and aiter import: here they are names without contents
- that a registry has the tag, and which digest it gives out
- how long a build takes and what the image weighs
- anything that needs a GPU
"""

import filecmp
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from patchset import series
from tests.image import buildah
from tests.image.buildah import Buildah
from tests.image.layout import ROOT

PATCHSET = series.load(ROOT)
# Those whose image is known: its aiter is pinned. The newest last.
RELEASES = [r.name for r in PATCHSET.releases.values() if "aiter" in r.info]
TOOL = "/opt/rocm-patches/apply.py"
TREE = "sgl-workspace/sglang/python/sglang"
# Both targets and both releases in every run, in two builds; ci/test --long has all of them.
IN_EVERY_RUN = {(RELEASES[-1], "layered"), (RELEASES[0], "source")}

unusable = buildah.unusable()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(unusable), reason=unusable),
    pytest.mark.xdist_group("real build"),
]


def pytest_generate_tests(metafunc):
    if "started" in metafunc.fixturenames:
        chosen = metafunc.config.option.release
        cases = [
            pytest.param(
                (release, target),
                marks=() if (release, target) in IN_EVERY_RUN else pytest.mark.long,
                id=f"{release}-{target}",
            )
            for release in RELEASES
            if chosen in (None, release)
            for target in ("layered", "source")
        ]
        metafunc.parametrize("started", cases, indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine(memory) -> Buildah:
    folder = memory / "buildah"
    folder.mkdir()
    return buildah.configured(folder)


@pytest.fixture(scope="module")
def base(engine) -> Callable[[str], str]:
    """A release's base image, made once."""
    return functools.cache(engine.base)


class Started(NamedTuple):
    engine: Buildah
    image: str
    container: str
    root: Path  # the container's files
    base: str
    target: str
    release: str

    def run(self, *command: str):
        """As `docker run IMAGE COMMAND` does, in the image's own folder and environment."""
        return self.engine.attempt("buildah", "run", self.container, "--", *command)

    def tool(self, *words: str) -> dict:
        done = self.run("python3", TOOL, *words, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


def build(engine: Buildah, base: str, release: str, target: str, *more: str):
    command = [sys.executable, ROOT / "ci/image/build.py", "--engine", "buildah"]
    command += ["--release", release, "--arch", "gfx950", "--rocm", "7.2", "--base", base]
    return engine.attempt(*command, "--target", target, *more)


@pytest.fixture(scope="module")
def started(request, engine, base) -> Started:
    release, target = request.param
    tag = f"localhost/patched:{release}-{target}"
    done = build(engine, base(release), release, target, "--tag", tag)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == tag
    container = engine("from", tag)
    root = Path(engine("mount", container))
    return Started(engine, tag, container, root, base(release), target, release)


def test_the_labels_say_what_is_in_the_image(started):
    labels = started.engine.labels(started.image)
    labels.pop("io.buildah.version")
    assert labels == {
        "org.opencontainers.image.title": "sglang with ROCm patches",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": started.release,
        "org.opencontainers.image.base.name": started.base,
        "org.opencontainers.image.base.digest": started.base.partition("@")[2],
        "org.sglang.rocm-patches.release": started.release,
        "org.sglang.rocm-patches.digest": started.tool("status")["digest"],
        "org.sglang.rocm-patches.slugs": "all",
    }


def test_the_images_python_finds_every_slug_on_and_every_byte_right(started):
    state = started.tool("status")
    assert (state["release"], state["tree"]) == (started.release, f"/{TREE}")
    assert state["state"] == dict.fromkeys(PATCHSET.release(started.release).patches, "on")
    assert started.tool("verify")["status"] == "patched"


def test_the_self_report_of_the_image_is_that_of_the_patch_set(started):
    done = started.run("python3", "-m", "sglang.srt.rocm_patches")
    assert done.returncode == 0, done.stderr
    assert PATCHSET.release(started.release).digest[:12] in done.stdout
    assert all(slug in done.stdout for slug in PATCHSET.release(started.release).patches)


def test_aiter_is_imported_in_the_folder_where_users_start(started):
    done = started.run("python3", "-c", "import aiter; aiter.dynamic_per_tensor_quant")
    assert done.returncode == 0, done.stderr


def test_the_source_target_alone_has_built_the_sources(started):
    for project in ("sglang/sgl-kernel", "aiter"):
        note = started.root / "sgl-workspace" / project / "built"
        told = note.read_text() if note.exists() else None
        assert told == ("gfx950" if started.target == "source" else None)


def test_revert_gives_the_releases_tree_back(started):
    """Last of this image: the container is the release's afterwards."""
    started.tool("revert")
    pristine = Path(started.engine("mount", started.engine("from", started.base)))
    assert not differing(filecmp.dircmp(pristine / TREE, started.root / TREE, ["__pycache__"]))


def differing(found: filecmp.dircmp) -> list[str]:
    # dircmp takes files of one size and time for equal.
    _, mismatch, errors = filecmp.cmpfiles(
        found.left, found.right, found.common_files, shallow=False
    )
    here = [*found.left_only, *found.right_only, *mismatch, *errors]
    return here + [name for each in found.subdirs.values() for name in differing(each)]


@pytest.mark.long
def test_a_base_of_another_release_is_no_image(engine, base):
    done = build(engine, base(RELEASES[-1]), RELEASES[0], "layered", "--tag", "localhost/refused")
    assert done.returncode == 1
    assert f"is not sglang {RELEASES[0]} as released" in done.stderr
    assert "localhost/refused" not in engine("images", "--format", "{{.Name}}")


@pytest.mark.long
def test_one_slug_alone_is_on_and_labelled(engine, base):
    tag = "localhost/one"
    slug = next(iter(PATCHSET.release(RELEASES[-1]).patches))
    done = build(engine, base(RELEASES[-1]), RELEASES[-1], "layered", "--slug", slug, "--tag", tag)
    assert done.returncode == 0, done.stdout + done.stderr
    assert engine.labels(tag)["org.sglang.rocm-patches.slugs"] == slug
    said = engine("run", engine("from", tag), "--", "python3", TOOL, "status", "--json")
    states = json.loads(said)["state"]
    assert [name for name, state in states.items() if state == "on"] == [slug]
