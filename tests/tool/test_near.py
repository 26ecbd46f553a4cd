"""Catches a hook in a function that is not proven, a near tree that does not come back whole."""

import itertools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from patchset import series
from patchset.functions import module
from tests.tool.synthetic import LAID, RECORD, House, content, synthetic_tree
from tools import functions

KILLER = Path(__file__).with_name("killer.py")
POOL, NORM = "sglang/srt/pool.py", "sglang/srt/norm.py"
PRISTINE = {
    NORM: b"""\
import math
from typing import Optional


class Norm:
    def forward(self, x: Optional[int]):
        y = x + 1
        z = math.sqrt(y)
        return z

    def backward(self, x):
        return x


def fit(x):
    a = x
    b = a
    return b
""",
    POOL: b"""\
import os
from math import floor

PAGES = 4


def size(pool):
    count = floor(pool)
    left = PAGES - count
    right = left
    return right


@staticmethod
def store(pool, value):
    pool[0] = value
    pool[1] = value
    pool[2] = value
    return pool
""",
    "sglang/srt/server.py": b"import os\n\n\ndef main():\n    os.getpid()\n    return 1\n",
}
IMPORT = "from sglang.srt.rocm_patches import "
EDITS = {
    "norm": {NORM: {2: f"from typing import Optional\n{IMPORT}norm\n", 8: "        z = norm(y)\n"}},
    "fit": {
        NORM: {1: f"import math\n{IMPORT}fit\n", 16: "    a = x\n    fit(a)\n"},
        POOL: {1: f"import os\n{IMPORT}fit\n", 8: "    count = fit(pool)\n"},
    },
    "store": {
        POOL: {2: f"from math import floor\n{IMPORT}store\n", 10: "    right = store\n", 17: ""}
    },
    "self-report": {"sglang/srt/server.py": {1: f"import os\n{IMPORT}me\n", 5: "    me()\n"}},
}
SLUGS = ("norm", "fit", "store")
SUBSETS = [s for n in range(4) for s in itertools.combinations(SLUGS, n)]


def release(house, name="1.0", pristine=PRISTINE, edits=EDITS):
    house.release(name, pristine, edits)
    made = series.load(house.home).releases[name]
    text = functions.text_of(made, pristine.__getitem__)
    (house.home / f"patches/{name}/functions.json").write_text(text)


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path / "house")
    made.lay("__init__.py", "norm.py", "fit.py", "store.py")
    release(made)
    return made


def beside(data):
    """`data` with changes around its functions, and the functions in another order."""
    read = module(data)
    lines = [line.decode() for line in read.lines]
    inside = {n for f in read.functions for n in range(f.start, f.end)}
    tops = [f for f in read.functions if "." not in f.name]
    first = min([f.start for f in tops], default=len(lines))
    head = [line for n, line in enumerate(lines[:first])]
    for _ in range(3):
        at = random.randrange(len(head) + 1)
        if at not in inside and at - 1 not in inside:
            head.insert(at, random.choice(["\n", "import sys\n", "X = 1\n", "# more\n"]))
            break
    blocks = [["\n", "\n", *lines[f.start : f.end]] for f in tops]
    random.shuffle(blocks)
    extra = ["\n", "def more():\n", "    return 2\n"]
    return "".join(itertools.chain(head, extra, *blocks)).encode()


@pytest.fixture
def tree(tmp_path, seed):
    files = {path: beside(data) for path, data in PRISTINE.items()}
    files[POOL] += b"# its own\n"
    return synthetic_tree(tmp_path / "tree", files)


def texts(path, data):
    read = module(data)
    return {f.name: f.text(read.lines) for f in read.functions if f.name != "more"}


def on(shown):
    return {slug for slug, now in shown["state"].items() if now == "on"}


def test_without_near_it_is_refused_and_the_slugs_that_fit_are_named(house, tree):
    before = content(tree)
    for verb in ("apply", "revert"):
        reply = house.ask(verb, "--tree", tree)
        assert (reply.code, reply.shown["status"], reply.shown["changed"]) == (1, "near", [])
        message = reply.shown["message"]
        assert "is not sglang 1.0, but near it: of what its patches touch," in message
        assert f"  {POOL}: found " in message
        assert "these fit by their functions, which are those of 1.0: norm, fit, store" in message
        assert f"apply --near --tree {tree}/sglang" in message
    assert content(tree) == before


@pytest.mark.parametrize("slugs", SUBSETS, ids=lambda s: "+".join(s) or "none")
def test_each_subset_makes_the_releases_functions_in_any_order_and_comes_off(
    slugs, house, tree, tmp_path
):
    before = content(tree)
    exact = synthetic_tree(tmp_path / "exact", PRISTINE)
    if slugs:
        house.ask("apply", *slugs, "--tree", exact)
    for slug in random.sample(slugs, len(slugs)):
        assert house.ask("apply", slug, "--near", "--tree", tree).code == 0
    shown = house.ask("status", "--tree", tree).shown
    assert (shown["status"], on(shown)) == ("near", set(slugs))
    for path in PRISTINE:
        made = (tree / path).read_bytes()
        assert texts(path, made) == texts(path, (exact / path).read_bytes())
        compile(made, path, "exec")
        for slug in SLUGS:
            hooked = slug in slugs and path in EDITS[slug]
            assert made.count(f"{IMPORT}{slug}\n".encode()) == hooked
    stepwise = content(tree)
    assert house.ask("apply", "--near", "--tree", tree).code == 0
    assert house.ask("verify", "--tree", tree).code == 0
    off = [slug for slug in SLUGS if slug not in slugs]
    if off:
        assert house.ask("revert", *off, "--tree", tree).code == 0
    assert content(tree) == stepwise
    assert house.ask("revert", "--near", "--tree", tree).code == 0
    assert content(tree) == before


def test_the_tree_says_that_it_is_near_and_its_record_holds(house, tree):
    assert house.ask("apply", "--near", "--tree", tree).code == 0
    laid = json.loads((tree / LAID / "provenance.json").read_text())
    assert (laid["release"], laid["near"]) == ("1.0", True)
    assert f"{LAID}/norm.py" in (tree / RECORD).read_text()
    out = house.run("status", "--tree", tree).out
    assert "near sglang 1.0 in" in out
    assert "near: 3 of 3 slugs on" in out
    assert house.ask("verify", "norm", "--tree", tree).code == 1
    assert house.ask("apply", "--near", "--tree", tree).shown["changed"] == []


def test_a_dry_run_writes_nothing(house, tree):
    before = content(tree)
    planned = house.ask("apply", "--near", "--dry-run", "--tree", tree).shown["changed"]
    assert content(tree) == before
    assert planned == house.ask("apply", "--near", "--tree", tree).shown["changed"] != []


def test_an_exact_tree_is_handled_as_ever_with_near_or_without(house, tmp_path):
    exact, other = (synthetic_tree(tmp_path / name, PRISTINE) for name in ("one", "two"))
    house.ask("apply", "--near", "--tree", exact)
    house.ask("apply", "--tree", other)
    assert content(exact) == content(other)
    assert house.ask("status", "--tree", exact).shown["status"] == "patched"


CHANGES = {
    "the text of its function": (b"y = x + 1", b"y = x + 2", "Norm.forward in {} differs"),
    "its function's name": (b"def forward", b"def forwards", "Norm.forward in {} is not there"),
    "where a name comes from": (
        b"from typing import Optional",
        b"from typing_extensions import Optional",
        "Optional in {} is typing_extensions.Optional, and not typing.Optional",
    ),
    "an import that is gone": (
        b"from typing import Optional",
        b"Optional = None",
        "Optional in {} is imported from nowhere, and not typing.Optional",
    ),
    "a second function of that text": (
        b"class Norm:",
        b"if 1:\n    class Norm:\n        pass\nclass Norm:",
        None,
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_slug_whose_function_or_names_differ_is_unavailable_and_the_others_go_on(
    what, house, tree
):
    was, becomes, says = CHANGES[what]
    (tree / NORM).write_bytes((tree / NORM).read_bytes().replace(was, becomes, 1))
    before = content(tree)
    shown = house.ask("status", "--tree", tree).shown
    fits = says is None
    assert shown["state"]["norm"] == ("off" if fits else "unavailable")
    reply = house.ask("apply", "norm", "--near", "--tree", tree)
    assert reply.code == (0 if fits else 1)
    if not fits:
        assert f"norm does not fit this tree: {says.format(NORM)}" in reply.shown["message"]
        assert f"norm does not fit: {says.format(NORM)}" in shown["message"]
        assert content(tree) == before
    shown = house.ask("apply", "--near", "--tree", tree).shown
    assert on(shown) >= {"fit", "store"}
    assert house.ask("verify", "--tree", tree).code == 0
    assert house.ask("revert", "--tree", tree).code == 0
    assert content(tree) == before


def test_two_functions_of_one_name_and_text_are_not_told_apart(house, tree):
    data = (tree / POOL).read_bytes()
    store = texts(POOL, data)["store"]
    (tree / POOL).write_bytes(data + b"\n\n" + store)
    state = house.ask("status", "--tree", tree).shown["state"]
    assert (state["store"], state["norm"]) == ("unavailable", "off")


def test_a_file_of_another_name_is_not_searched_for(house, tree):
    (tree / NORM).rename(tree / "sglang/srt/normal.py")
    shown = house.ask("status", "--tree", tree).shown
    assert f"norm does not fit: {NORM} is not there" in shown["message"]
    assert (shown["state"]["norm"], shown["state"]["store"]) == ("unavailable", "off")


@pytest.mark.parametrize("becomes", [b"def broken(:\n", b"x = 1\r\n"])
def test_a_file_that_cannot_be_parsed_takes_no_hook(becomes, house, tree):
    (tree / NORM).write_bytes((tree / NORM).read_bytes() + becomes)
    shown = house.ask("status", "--tree", tree).shown
    assert f"norm does not fit: {NORM} is nothing that can be read" in shown["message"]
    assert shown["state"]["store"] == "off"


def test_without_a_place_for_the_report_the_slugs_go_on_and_it_is_said(house, tree):
    server = tree / "sglang/srt/server.py"
    server.write_bytes(server.read_bytes().replace(b"getpid", b"getppid"))
    reply = house.ask("apply", "--near", "--tree", tree)
    assert (reply.code, on(reply.shown)) == (0, set(SLUGS))
    message = house.ask("status", "--tree", tree).shown["message"]
    assert "self-report does not fit: main in sglang/srt/server.py differs" in message
    assert b"rocm_patches" not in server.read_bytes()


def test_no_functions_known_means_no_near_tree(house, tree):
    (house.home / "patches/1.0/functions.json").unlink()
    shown = house.ask("apply", "--near", "--tree", tree).shown
    assert shown["status"] in ("drifted", "unknown-release")


def test_functions_of_another_diff_do_not_count(house, tree):
    known = house.home / "patches/1.0/functions.json"
    known.write_text(known.read_text().replace("..", "..0"))
    assert house.ask("apply", "--near", "--tree", tree).shown["status"] != "near"


def test_the_release_that_most_slugs_are_of_is_taken(house, tree, tmp_path):
    later = {p: d.replace(b"y = x + 1", b"y = x + 2") for p, d in PRISTINE.items()}
    edits = {slug: EDITS[slug] for slug in ("norm", "self-report")}
    release(house, "2.0", later, edits)
    assert house.ask("status", "--tree", tree).shown["release"] == "1.0"
    files = {path: beside(data) for path, data in later.items()}
    other = synthetic_tree(tmp_path / "later", {**files, POOL: b"\n"})
    shown = house.ask("status", "--tree", other).shown
    assert (shown["release"], shown["state"]["norm"]) == ("2.0", "off")


# Edits, halves, revisions, kills --------------------------------------------------------------


def test_an_edit_beside_the_functions_stays_when_the_slugs_come_off(house, tree):
    assert house.ask("apply", "--near", "--tree", tree).code == 0
    (tree / POOL).write_bytes((tree / POOL).read_bytes() + b"# my edit\n")
    assert house.ask("verify", "--tree", tree).code == 1
    assert house.ask("apply", "--near", "--tree", tree).code == 0
    assert house.ask("verify", "--tree", tree).code == 0
    assert house.ask("revert", "--tree", tree).code == 0
    assert (tree / POOL).read_bytes().endswith(b"# its own\n# my edit\n")
    assert b"rocm_patches" not in (tree / POOL).read_bytes()


def test_an_edit_in_a_hooked_function_is_drifted_and_refused(house, tree):
    assert house.ask("apply", "--near", "--tree", tree).code == 0
    (tree / POOL).write_bytes(
        (tree / POOL).read_bytes().replace(b"PAGES - count", b"PAGES + count")
    )
    before = content(tree)
    for verb in ("apply", "revert"):
        reply = house.ask(verb, "--near", "--tree", tree)
        assert (reply.code, reply.shown["status"]) in ((1, "drifted"), (1, "unknown-release"))
        assert content(tree) == before


def test_an_exact_tree_that_was_edited_beside_the_functions_can_be_moved_as_near(house, tmp_path):
    root = synthetic_tree(tmp_path / "exact", PRISTINE)
    assert house.ask("apply", "--tree", root).code == 0
    (root / POOL).write_bytes((root / POOL).read_bytes() + b"# my edit\n")
    assert house.ask("revert", "--tree", root).code == 1
    assert house.ask("revert", "--near", "--tree", root).code == 0
    assert (root / POOL).read_bytes() == PRISTINE[POOL] + b"# my edit\n"
    assert (root / NORM).read_bytes() == PRISTINE[NORM]


@pytest.mark.parametrize("path", [POOL, NORM])
def test_a_file_put_back_by_hand_is_partial_and_apply_heals_it(path, house, tree):
    original = (tree / path).read_bytes()
    house.ask("apply", "--near", "--tree", tree)
    whole = content(tree)
    (tree / path).write_bytes(original)
    assert house.ask("status", "--tree", tree).shown["status"] == "partial"
    assert house.ask("apply", "--near", "--tree", tree).shown["changed"] == [path]
    assert content(tree) == whole


def test_hooks_without_an_overlay_are_taken_out_by_their_functions(house, tree):
    before = content(tree)
    house.ask("apply", "--near", "--tree", tree)
    shutil.rmtree(tree / LAID)
    assert house.ask("status", "--tree", tree).shown["status"] == "partial"
    assert house.ask("revert", "--near", "--tree", tree).code == 0
    assert content(tree) == before


def test_another_revision_moves_a_near_tree_and_gives_it_back(house, tree, tmp_path):
    before = content(tree)
    house.ask("apply", "norm", "fit", "--near", "--tree", tree)
    shutil.rmtree(house.home)
    edits = {**EDITS, "norm": {NORM: {2: f"from typing import Optional\n{IMPORT}norm\n", 7: ""}}}
    edits["fit"] = {POOL: EDITS["fit"][POOL]}  # which leaves norm.py alone now
    newer = House(tmp_path / "newer")
    newer.lay("__init__.py", "norm.py", "fit.py", "store.py", text="# newer\n")
    release(newer, edits=edits)
    assert newer.ask("status", "--tree", tree).shown["status"] == "partial"
    reply = newer.ask("apply", "store", "--near", "--tree", tree)
    assert (reply.code, on(reply.shown)) == (0, set(SLUGS))
    assert b"y = x + 1" not in (tree / NORM).read_bytes()
    assert newer.ask("verify", "--tree", tree).code == 0
    assert newer.ask("revert", "--tree", tree).code == 0
    assert content(tree) == before


def test_random_walks_end_where_they_began(house, tree, seed):
    before = content(tree)
    for _ in range(20):
        verb = random.choice(["apply", "revert"])
        house.ask(verb, *random.sample(SLUGS, random.randrange(3)), "--near", "--tree", tree)
        assert house.ask("status", "--tree", tree).shown["status"] == "near"
    house.ask("revert", "--near", "--tree", tree)
    assert content(tree) == before


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_is_lost_when_a_move_of_a_near_tree_is_killed(kills, house, tree, seed):
    house.installed()
    tree.rename(house.home / "tree")
    command = [sys.executable, "-I", KILLER, "--near", house.home, str(seed), str(kills)]
    done = subprocess.run(
        [*command, "", "norm", "norm,fit,store"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["lost"] == []
    assert result["hits"] >= kills
