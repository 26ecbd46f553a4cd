"""Catches a download that is taken for whole when it is not, or done twice."""

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile

import pytest

from patchset import series
from tests.tool.synthetic import PRISTINE, RECORD, ROOT, content, rows

NAME = "sglang-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path, house, monkeypatch):
    """A folder that pip finds wheels in, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    pin(house, b"")
    return folder


def pin(house, wheel):
    """What the patch set holds for the published wheel."""
    file = house.home / "patches/1.0/release.json"
    info = json.loads(file.read_text())
    info["wheels"] = {"1.0": hashlib.sha256(wheel).hexdigest()}
    file.write_text(json.dumps(info))


def wheel(house, index, changes=None, record=None):
    """A wheel that needs a package which no index has, published and pinned."""
    info = "sglang-1.0.dist-info/"
    files = {"sglang/__init__.py": b"", "sglang/srt/__init__.py": b"", **PRISTINE}
    files[f"{info}METADATA"] = (
        b"Metadata-Version: 2.1\nName: sglang\nVersion: 1.0\nRequires-Dist: no-such-thing==1\n"
    )
    files[f"{info}WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    listed = {RECORD: (record or rows(files)).encode()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, data in {**files, **(changes or {}), **listed}.items():
            archive.writestr(path, data)
    (index / NAME).write_bytes(packed.getvalue())
    pin(house, packed.getvalue())
    return files | listed


def test_a_release_is_fetched_once_and_is_the_wheel_byte_for_byte(house, index):
    files = wheel(house, index)
    reply = house.ask("status", "--fetch", "1.0")
    assert (reply.code, reply.shown["status"]) == (0, "pristine")
    build = house.home / "build"
    assert reply.shown["tree"] == str(build / "sglang-1.0/sglang")
    assert content(build / "sglang-1.0") == files
    (index / "sglang-1.0-py3-none-any.whl").unlink()
    assert house.ask("apply", "--fetch", "1.0").code == 0
    assert house.ask("verify", "--fetch", "1.0").code == 0
    assert house.ask("revert", "--fetch", "1.0").code == 0
    assert content(build / "sglang-1.0") == files
    assert sorted(file.name for file in build.iterdir()) == ["sglang-1.0", "sglang-1.0.whl"]


def test_a_wheel_that_is_not_what_its_record_says_is_refused_and_not_kept(house, index):
    wheel(house, index, {"sglang/srt/pool.py": b"cut sh"})
    reply = house.ask("status", "--fetch", "1.0")
    assert reply.code == 1
    assert "sglang/srt/pool.py is not what its RECORD says" in reply.shown["message"]
    assert [file.name for file in (house.home / "build").iterdir()] == ["sglang-1.0.whl"]


def test_a_release_that_the_index_does_not_have_is_refused_in_a_sentence(house, index):
    reply = house.ask("apply", "--fetch", "1.0")
    assert reply.code == 1
    assert "the package index has no wheel of sglang 1.0" in reply.shown["message"]
    assert "pip download --no-deps sglang==1.0" in reply.shown["message"]


def test_no_network_is_told_apart_from_no_such_release(house, monkeypatch):
    pin(house, b"")
    for variable in [name for name in os.environ if name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "1")
    reply = house.ask("apply", "--fetch", "1.0")
    assert reply.code == 1
    assert "pip could not reach the package index for sglang 1.0" in reply.shown["message"]
    assert "wheel of sglang" not in reply.shown["message"]


@pytest.mark.parametrize("name", ["9.9", "0.9"])
def test_a_release_that_no_series_covers_is_refused_before_pip_is_asked(name, house, monkeypatch):
    published = {"files": [], "releases": {"0.9": []}}
    (house.home / "patches/published.json").write_text(json.dumps(published))
    monkeypatch.setattr(subprocess, "run", None)
    reply = house.ask("apply", "--fetch", name)
    assert reply.code == 1
    assert f"{name}, which no series covers; covered are: 1.0, 1.0.post1" in reply.shown["message"]
    assert not (house.home / "build").exists()


def test_a_python_without_pip_is_refused_in_a_sentence(house, tmp_path, monkeypatch):
    pin(house, b"")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin/python"))
    reply = house.ask("apply", "--fetch", "1.0")
    assert reply.code == 1
    assert "No module named pip" in reply.shown["message"]


def test_a_build_folder_that_cannot_be_written_is_refused_in_a_sentence(house, index):
    wheel(house, index)
    (house.home / "build").write_text("in the way")
    reply = house.ask("apply", "--fetch", "1.0")
    assert reply.code == 1
    assert f"below {house.home / 'build'}" in reply.shown["message"]


def test_two_that_fetch_at_once_both_get_it(house, index):
    files = wheel(house, index)
    house.installed()
    command = [sys.executable, house.home / "apply.py", "status", "--fetch", "1.0"]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert content(house.home / "build/sglang-1.0") == files
    left = sorted(file.name for file in (house.home / "build").iterdir())
    assert left == ["sglang-1.0", "sglang-1.0.whl"]


def test_a_fetched_tree_that_was_edited_is_to_be_fetched_anew(house, index):
    wheel(house, index)
    house.ask("status", "--fetch", "1.0")
    tree = house.home / "build/sglang-1.0"
    (tree / "sglang/srt/pool.py").write_text("edited\n")
    message = house.ask("apply", "--fetch", "1.0").shown["message"]
    assert f"rm -r {tree}" in message


# Somebody else's bytes ------------------------------------------------------------------------


def test_another_wheel_of_that_name_is_refused_whatever_its_record_says(house, index):
    wheel(house, index)
    published = (index / NAME).read_bytes()
    wheel(house, index, {"sglang/extra.py": b"print('not of the release')\n"})
    pin(house, published)
    reply = house.ask("apply", "--fetch", "1.0")
    assert reply.code == 1
    assert "the package index served another wheel of sglang 1.0" in reply.shown["message"]
    assert list((house.home / "build").iterdir()) == []


def test_a_release_whose_wheel_is_not_pinned_is_refused_before_pip_is_asked(
    house, index, monkeypatch
):
    house.release("1.0")
    monkeypatch.setattr(subprocess, "run", None)
    reply = house.ask("apply", "--fetch", "1.0")
    assert reply.code == 1
    assert "not pinned" in reply.shown["message"]


@pytest.mark.parametrize(
    "path", ["evil.pth", "../evil.py", "/evil.py", "sglang/./evil.py"], ids=lambda path: path
)
def test_a_member_that_record_does_not_name_is_refused(path, house, index, tmp_path):
    wheel(house, index, {path: b"import os\n"})
    reply = house.ask("status", "--fetch", "1.0")
    assert reply.code == 1
    assert path in reply.shown["message"]
    assert not (house.home / "build/sglang-1.0").exists()
    assert not [*tmp_path.rglob("evil*")]


def test_a_file_that_only_record_names_is_refused(house, index):
    listed = rows({**PRISTINE, "sglang/gone.py": b""})
    wheel(house, index, record=listed)
    assert house.ask("status", "--fetch", "1.0").code == 1


@pytest.mark.parametrize("on", [(), ("norm",)], ids=["pristine", "patched"])
@pytest.mark.parametrize("how", ["edited", "added", "gone", "linked", "row"])
def test_a_kept_tree_is_proven_again_before_it_is_patched(how, on, house, index, tmp_path):
    wheel(house, index)
    assert house.ask("apply", *on, "--fetch", "1.0").code == 0 if on else True
    house.ask("status", "--fetch", "1.0")
    tree = house.home / "build/sglang-1.0"
    file = tree / "sglang/srt/__init__.py"
    match how:
        case "edited":
            file.write_text("# other bytes\n")
        case "added":
            (tree / "evil.pth").write_text("import os\n")
        case "gone":
            file.unlink()
        case "linked":
            file.rename(tmp_path / "elsewhere.py")
            file.symlink_to(tmp_path / "elsewhere.py")
        case "row":
            record = tree / RECORD
            record.write_text(record.read_text().replace("sglang/srt/__init__.py", "sglang/x.py"))
    before = content(tree)
    reply = house.ask("apply", "--fetch", "1.0")
    assert reply.code == 1
    assert str(tree) in reply.shown["message"]
    assert content(tree) == before


def test_a_link_in_place_of_the_kept_tree_is_not_followed(house, index, tmp_path):
    wheel(house, index)
    house.ask("status", "--fetch", "1.0")
    tree = house.home / "build/sglang-1.0"
    tree.rename(tmp_path / "elsewhere")
    tree.symlink_to(tmp_path / "elsewhere")
    before = content(tmp_path / "elsewhere")
    reply = house.ask("apply", "--fetch", "1.0")
    assert reply.code == 1
    assert "symbolic link" in reply.shown["message"]
    assert content(tmp_path / "elsewhere") == before


def test_every_covered_release_is_pinned_and_bytecode_is_no_reason_to_refuse(house, index):
    for release in series.load(ROOT).releases.values():
        assert release.info["wheels"].keys() == {release.name, *release.also}
        assert all(len(bytes.fromhex(sha)) == 32 for sha in release.info["wheels"].values())
    wheel(house, index)
    house.ask("status", "--fetch", "1.0")
    cached = house.home / "build/sglang-1.0/sglang/__pycache__"
    cached.mkdir()
    (cached / "__init__.cpython-311.pyc").write_bytes(b"compiled")
    assert house.ask("apply", "--fetch", "1.0").code == 0
