"""Catches the wrong tree being found, or sglang being imported to find it."""

import os
import subprocess
import sys

import pytest

from tests.tool.synthetic import content, synthetic_tree


@pytest.mark.parametrize("name", ["", "python", "python/sglang"])
def test_a_checkout_its_python_folder_and_the_package_are_the_same_tree(name, house, tmp_path):
    checkout = tmp_path / "checkout"
    synthetic_tree(checkout / "python", record=False)
    (checkout / "sgl-kernel").mkdir()
    shown = house.ask("status", "--tree", checkout / name).shown
    assert shown["tree"] == str(checkout / "python/sglang")


@pytest.mark.parametrize("name", ["", "sglang"])
def test_a_site_packages_and_the_package_in_it_are_the_same_tree(name, house, tree):
    assert house.ask("status", "--tree", tree / name).shown["tree"] == str(tree / "sglang")


def test_a_checkout_called_sglang_is_not_taken_for_the_package(house, tmp_path):
    checkout = tmp_path / "sglang"
    synthetic_tree(checkout / "python", record=False)
    assert house.ask("status", "--tree", checkout).shown["tree"] == str(checkout / "python/sglang")
    assert house.ask("status", "--tree", tmp_path).code == 1


def test_a_link_to_a_tree_leads_to_its_real_files(house, tree, tmp_path):
    links = tmp_path / "site-packages"
    links.mkdir()
    (links / "sglang").symlink_to(tree / "sglang")
    assert house.ask("apply", "--tree", links).shown["tree"] == str(tree / "sglang")
    assert (links / "sglang").is_symlink()
    assert house.ask("verify", "--tree", tree).code == 0


def test_a_link_of_another_name_to_the_package_leads_there_too(house, tree, tmp_path):
    renamed = tree / "sglang-src"
    (tree / "sglang").rename(renamed)
    (tree / "sglang").symlink_to(renamed)
    reply = house.ask("apply", "--tree", tree)
    assert (reply.code, reply.shown["tree"]) == (0, str(renamed))
    assert house.ask("revert", "--tree", tree).code == 0


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_a_folder_without_sglang_is_refused_with_what_tree_takes(place, house, tmp_path):
    (tmp_path / "empty").mkdir()
    reply = house.ask("status", "--tree", tmp_path / place)
    assert reply.code == 1
    assert f"no sglang at {tmp_path / place}" in reply.shown["message"]
    assert "site-packages" in reply.shown["message"]


def test_a_tree_that_cannot_be_read_is_refused_by_name(house, tree):
    pool = tree / "sglang/srt/pool.py"
    pool.unlink()
    pool.mkdir()
    reply = house.ask("status", "--tree", tree)
    assert reply.code == 1
    assert f"cannot read {pool}" in reply.shown["message"]


# Editable installs, as setuptools leaves them in a site-packages ------------------------------

FINDER = """import sys
MAPPING: dict[str, str] = {{'sglang': {package!r}}}
NAMESPACES: dict[str, list[str]] = {{}}
raise SystemExit('a finder is read, never run')
"""


def editable(site, package, style):
    site.mkdir()
    if style == "finder":
        (site / "__editable__.sglang-1.0.pth").write_text(
            "import __editable___sglang_1_0_finder; __editable___sglang_1_0_finder.install()"
        )
        finder = site / "__editable___sglang_1_0_finder.py"
        finder.write_text(FINDER.format(package=str(package)))
    else:
        (site / "easy-install.pth").write_text(f"# by develop\n{package.parent}\n")
    info = site / "sglang-1.0.dist-info"
    info.mkdir()
    (info / "RECORD").write_text("__editable__.sglang-1.0.pth,sha256=x,1\n")


@pytest.mark.parametrize("style", ["finder", "pth"])
def test_a_site_packages_with_an_editable_install_leads_to_the_checkout(style, house, tmp_path):
    package = synthetic_tree(tmp_path / "checkout/python", record=False) / "sglang"
    editable(tmp_path / "site", package, style)
    before = content(tmp_path / "site")
    reply = house.ask("apply", "--tree", tmp_path / "site")
    assert (reply.code, reply.shown["tree"]) == (0, str(package))
    assert content(tmp_path / "site") == before


def found_by(house, *python, path=(), cwd="/", env=None):
    """The tree that apply.py finds without being told, run by `python`."""
    code = f"import sys; sys.path += {[str(p) for p in path]!r}; sys.argv = ['apply.py', 'status', "
    code += f"'--json']; import runpy; runpy.run_path({str(house.home / 'apply.py')!r}, None, "
    code += "'__main__')"
    done = subprocess.run(
        [sys.executable, *python, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("isolated", [(), ("-I",)], ids=["plain", "isolated"])
@pytest.mark.parametrize("style", ["finder", "pth"])
def test_the_tree_this_python_would_import_is_found_past_a_namespace_package(
    style, isolated, house, tmp_path
):
    """As in ROCm images: the working directory holds a checkout called sglang."""
    house.installed()
    workspace = tmp_path / "workspace"
    package = synthetic_tree(workspace / "sglang/python", record=False) / "sglang"
    (package / "__init__.py").write_text("raise SystemExit('sglang is never imported')\n")
    editable(tmp_path / "site", package, style)
    done = found_by(house, *isolated, path=[tmp_path / "site"], cwd=workspace)
    assert f'"tree": "{package}"' in done.stdout


def test_a_package_on_the_path_comes_before_an_editable_install(house, tree, tmp_path):
    house.installed()
    package = synthetic_tree(tmp_path / "checkout/python", record=False) / "sglang"
    editable(tmp_path / "site", package, "finder")
    done = found_by(house, path=[tmp_path / "site", tree])
    assert f'"tree": "{tree / "sglang"}"' in done.stdout


def test_pythonpath_counts_unless_python_is_isolated(house, tree):
    house.installed()
    env = {"PYTHONPATH": str(tree)}
    assert f'"tree": "{tree / "sglang"}"' in found_by(house, env=env).stdout
    assert "this Python has no sglang" in found_by(house, "-I", env=env).stdout


def test_without_any_sglang_the_three_ways_to_name_one_are_told(house):
    house.installed()
    done = found_by(house, "-I")
    assert done.returncode == 1
    for way in ("--tree PATH", "--fetch RELEASE", "the Python that has sglang"):
        assert way in done.stdout
