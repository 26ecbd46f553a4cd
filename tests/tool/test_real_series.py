"""Catches a real patch that does not commute, does not compile, or does not come off again."""

import csv
import itertools
import random
import resource
import shutil
import subprocess
import sys

import pytest

from patchset import manifest, record, series
from patchset.diff import split
from patchset.tree import Tree
from tests.platform.trees import pristine_tree
from tests.tool.synthetic import LAID, ROOT, House, content, git


class RealHouse(House):
    """A checkout that is there already."""

    def __init__(self, home):
        self.home, self.whole = home, True


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    """A copy of this checkout, which may be edited while the tests run."""
    home = tmp_path_factory.mktemp("house")
    for part in ("apply.py", "patchset", "patches", "overlay"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, home / part)
    manifest.write(home)
    return RealHouse(home)


@pytest.fixture(scope="session")
def covered(release, house):
    """What the checkout has for the release."""
    return series.load(house.home).releases[release]


@pytest.fixture
def wheel(covered, house, tmp_path):
    """A pristine tree of the release: only the files that patches touch, and the metadata."""
    source = pristine_tree(covered.name)
    paths = [*covered.pristine_ids(), "sglang/__init__.py", *Tree(source / "sglang").records()]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / path, tmp_path / path)
    assert house.ask("status", "--tree", tmp_path).shown["status"] == "pristine"
    return tmp_path


def subsets(slugs):
    return [s for n in range(len(slugs) + 1) for s in itertools.combinations(slugs, n)]


@pytest.mark.parametrize(
    "part", [slice(4), pytest.param(slice(4, None), marks=pytest.mark.slow)], ids=["four", "others"]
)
def test_every_subset_applies_compiles_and_reverts_to_the_wheels_bytes(
    part, covered, house, wheel, request
):
    every = subsets([*covered.patches])
    random.Random(request.config.option.seed).shuffle(every)  # the same for both parts
    if part.start:
        shorten_record(wheel)
    before = content(wheel)
    assert record_holds(wheel, before)
    seen, compiled = {}, set()
    for slugs in every[part]:
        # What a move tells of the tree it has read again.
        reply = house.ask(*(("apply", *slugs) if slugs else ("status",)), "--tree", wheel)
        assert reply.code == 0, reply.shown["message"]
        on, shown = covered.required(slugs), reply.shown
        assert {slug for slug, now in shown["state"].items() if now == "on"} == on
        assert shown["status"] == ("patched" if slugs else "pristine")
        after = content(wheel)
        assert record_holds(wheel, after)
        for path, data in after.items():
            if path.endswith(".py") and data not in compiled:
                compile(data, path, "exec", dont_inherit=True)
                compiled.add(data)
        assert seen.setdefault(frozenset(on), after) == after
        assert house.ask("revert", "--tree", wheel).code == 0
        assert content(wheel) == before


def shorten_record(tree):
    """To the rows of the files that are there: reading thousands of others takes a third of a move.

    What the whole of it becomes is seen where fewer moves are made.
    """
    (name,) = Tree(tree / "sglang").records()
    with (tree / name).open(newline="") as rows:
        kept = [row for row in rows if (tree / next(csv.reader([row]))[0]).exists()]
    (tree / name).write_text("".join(kept), newline="")


def record_holds(tree, files):
    """Every file there is what its row says, and every laid file has a row."""
    (name,) = Tree(tree / "sglang").records()
    with (tree / name).open(newline="") as rows:
        paths = {row[0] for row in csv.reader(rows)}
    for row in split((tree / name).read_bytes()):
        data, proof = files.get(record.path_of(row)), record.proof_of(row)
        if data is not None and proof and not proof.holds(data):
            return False
    return {p for p in files if p.startswith(LAID)} <= paths


@pytest.mark.slow
def test_slugs_go_on_in_any_order_with_one_result(covered, house, wheel, seed):
    before, results = content(wheel), []
    order = random.sample([*covered.patches], len(covered.patches))
    for one in (order, order[::-1]):  # of any two slugs, each comes first once
        for slug in one:
            assert house.ask("apply", slug, "--tree", wheel).code == 0
        results.append(content(wheel))
        for slug in one:
            assert house.ask("revert", slug, "--tree", wheel).code == 0
        assert content(wheel) == before
    assert results[0] == results[1]


@pytest.mark.slow
def test_git_takes_each_patch_and_every_exported_subset(covered, house, wheel):
    before = content(wheel)
    for slug in covered.patches:
        patch = (house.home / "patches" / covered.name / f"{slug}.patch").read_bytes()
        git("apply", "--check", given=patch, cwd=wheel)
    for slugs in subsets([*covered.patches])[1:]:
        out = house.run("export", "--release", covered.name, *slugs).out.encode()
        git("apply", given=out, cwd=wheel)
        shown = house.ask("status", "--tree", wheel).shown
        wrong = {f["path"] for f in shown["files"] if f["status"] != "right"}
        assert wrong <= {path for path in before if path.endswith("RECORD")}
        assert {s for s, now in shown["state"].items() if now == "on"} == covered.required(slugs)
        git("apply", "-R", given=out, cwd=wheel)
        assert content(wheel) == before


def test_apply_of_the_whole_series_takes_a_second_of_cpu_at_most(covered, house, wheel):
    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            sys.executable,
            "-I",
            house.home / "apply.py",
            "apply",
            "--quiet",
            "--tree",
            wheel,
        ]
        subprocess.run(command, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        house.ask("revert", "--tree", wheel)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 1


def test_twins_of_a_release_are_the_same_bytes_where_patches_touch(covered, house):
    for twin in covered.also:
        shown = house.ask("status", "--tree", pristine_tree(twin)).shown
        assert (shown["release"], shown["status"]) == (covered.name, "pristine")


@pytest.mark.slow
def test_pip_uninstalls_a_patched_wheel_without_a_trace(covered, house, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    shutil.copytree(pristine_tree(covered.name), site, dirs_exist_ok=True)
    assert house.ask("apply", "--tree", site).code == 0
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "venv/bin/python"]
    subprocess.run([*pip, "uninstall", "-y", "-q", "sglang"], check=True, capture_output=True)
    assert content(site) == {}
