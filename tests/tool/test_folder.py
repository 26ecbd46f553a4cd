"""Catches a path of the tree that is opened by name: through a link, or where it never ends."""

import ast
import contextlib
import os
import signal
import stat
import sys
from pathlib import Path, PurePath

import pytest

from patchset.errors import Refused
from patchset.folder import Folder
from patchset.journal import FOLDER
from tests.tool.synthetic import LAID, RECORD, ROOT, content

MODULES = [*sorted((ROOT / "patchset").glob("*.py")), ROOT / "apply.py"]
POOL = "sglang/srt/pool.py"

# One way to open a path --------------------------------------------------------------------------

# What a path can do that a name alone cannot: all that asks the file system.
OF_PATHS = {name for name in {*dir(Path)} - {*dir(PurePath)} if not name.startswith("_")}
OF_PATHS |= {"walk"}  # of newer Pythons
# A folder's methods of the same names are told apart by their arguments: a folder takes a name.
ARGUMENTS = {"stat": 0, "is_file": 0, "unlink": 0, "rename": 1, "replace": 1, "walk": 0}
# Of `os`, what takes no path, or a descriptor only.
OF_NO_PATH = {
    "_exit",
    "close",
    "devnull",
    "dup2",
    "environ",
    "fchmod",
    "fchown",
    "fsdecode",
    "fsencode",
    "fstat",
    "ftruncate",
    "geteuid",
    "getpid",
    "getxattr",
    "listxattr",
    "path",
    "pread",
    "pwrite",
    "setxattr",
    "stat_result",
    "strerror",
}
OF_NO_PATH |= {"path.basename", "path.dirname", "path.join", "path.samestat"}
MODULES_THAT_OPEN = {"codecs", "fileinput", "glob", "linecache", "shutil", "tarfile", "tempfile"}
OPENERS = {"open", "io.open", "io.FileIO", "zipfile.ZipFile"}

SET = "the patch set's own checkout"
NAMED = "the path that the user or Python named; what follows is opened from the root, by its parts"
SHOWN = "asks the machine where its programs lie, to print a command"
EXCEPTIONS = {
    ("apply.py", "Path(__file__).resolve()"): SET,
    ("cli.py", "os.open(os.devnull, os.O_WRONLY)"): "no file",
    ("cli.py", "open(os.devnull, 'w')"): "no file",
    ("cli.py", "os.path.isfile(args.tree)"): NAMED,
    ("fetch.py", "build.resolve()"): SET,
    ("fetch.py", "zipfile.ZipFile(io.BytesIO(data))"): "of bytes in memory",
    ("fetch.py", "member.is_dir()"): "a member of the wheel",
    ("manifest.py", "home.glob(part)"): SET,
    ("manifest.py", "path.is_file()"): SET,
    ("manifest.py", "file.is_file()"): SET,
    ("manifest.py", "(home / '.git').exists()"): SET,
    ("manifest.py", "own.exists()"): SET,
    ("published.py", "table.exists()"): SET,
    ("published.py", "since.exists()"): SET,
    ("report.py", "import shutil"): SHOWN,
    ("report.py", "shutil.which('python3')"): SHOWN,
    ("report.py", "os.path.realpath(os.path.dirname(executable))"): SHOWN,
    ("series.py", "(home / 'patches').glob('*/release.json')"): SET,
    ("series.py", "home.glob('*.patch')"): SET,
    ("series.py", "functions.is_file()"): SET,
    ("transition.py", "journal.exists()"): "the journal's own method, by way of a folder",
    ("tree.py", "package.resolve()"): NAMED,
    ("tree.py", "(folder / '__init__.py').is_file()"): NAMED,
    ("tree.py", "(folder / 'srt').is_dir()"): NAMED,
    ("tree.py", "site.resolve()"): NAMED,
    ("tree.py", "file.resolve()"): NAMED,
}


def opened(source):
    """Each expression of `source` that asks the file system for a path by itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            some = {alias.name for alias in node.names if alias.asname or alias.name != "os"}
            found = MODULES_THAT_OPEN & some or any(
                alias.name == "os" and alias.asname for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            found = node.module in {"os", "os.path", "io", *MODULES_THAT_OPEN}
        elif isinstance(node, ast.Call):
            found = ast.unparse(node.func) in OPENERS or _asks(node.func, len(node.args))
        else:  # a method that is handed on
            found = isinstance(node, ast.Attribute) and _is_path_class(node.value)
            found = found and node.attr in OF_PATHS
        if found:
            yield ast.unparse(node)


def _asks(function, arguments):
    if not isinstance(function, ast.Attribute):
        return False
    owner, _, rest = ast.unparse(function).partition(".")
    if owner in MODULES_THAT_OPEN:
        return True
    if owner == "os" and "(" not in rest:
        return rest not in OF_NO_PATH
    if _is_path_class(function.value):
        return function.attr in OF_PATHS
    return function.attr in OF_PATHS and arguments == ARGUMENTS.get(function.attr, arguments)


def _is_path_class(node):
    return isinstance(node, ast.Name) and node.id == "Path"


def test_the_tree_is_opened_by_one_module_only():
    found = {
        (module.name, text)
        for module in MODULES
        if module.name != "folder.py"
        for text in opened(module.read_text())
    }
    assert sorted(found - EXCEPTIONS.keys()) == []
    assert sorted(EXCEPTIONS.keys() - found) == []


@pytest.mark.parametrize(
    "slip",
    """open(file); io.open(file); file.read_bytes(); file.read_text(); file.write_bytes(data)
    file.write_text(data); file.open(); file.stat(); file.lstat(); file.exists(); file.is_file()
    file.is_dir(); file.iterdir(); file.glob('*'); file.rglob('*'); file.walk(); file.mkdir()
    file.touch(); file.chmod(mode); file.unlink(); file.unlink(missing_ok=True); file.rmdir()
    file.rename(other); file.replace(other); file.symlink_to(other); file.resolve()
    map(Path.read_bytes, files); Path.unlink(file); os.open(file, flags); os.stat(file)
    os.rename(a, b); os.replace(a, b); os.unlink(file); os.remove(file); os.rmdir(file)
    os.mkdir(file); os.makedirs(file); os.listdir(file); os.scandir(file); os.walk(file)
    os.chmod(file, mode); os.chown(file, 0, 0); os.link(a, b); os.symlink(a, b)
    os.path.exists(file); os.path.realpath(file); shutil.copy(a, b); shutil.rmtree(file)
    glob.glob(file); tempfile.mkstemp(); from os import unlink; from shutil import copy
    import os as system; import glob; zipfile.ZipFile(file)""".replace(";", "\n").splitlines(),
)
def test_each_slip_of_that_kind_is_seen(slip):
    assert [*opened(slip.strip())]


@pytest.mark.parametrize("command", ["apply", "revert", "status", "verify"])
def test_what_runs_names_one_part_of_a_path_at_a_time(command, house, tree, audited):
    """The same of the calls that are made: what is told of each is one name in an open folder."""
    if command in ("revert", "verify"):
        assert house.ask("apply", "--tree", tree).code == 0
    with audited() as calls:
        assert house.ask(command, "--tree", tree).code == 0
    assert "pool.py" in calls
    assert [path for path in calls if path.startswith(f"{tree}/")] == []


@pytest.fixture(scope="module")
def audited():
    """Python tells each opening, listing, renaming and removal; the hook stays, and sleeps."""
    heard = []

    def hear(event, words):
        if heard and (event == "open" or event.startswith("os.")):
            heard[-1].extend(os.fsdecode(word) for word in words if isinstance(word, str | bytes))

    sys.addaudithook(hear)

    @contextlib.contextmanager
    def listening():
        heard.append([])
        try:
            yield heard[-1]
        finally:
            heard.pop()

    return listening


# Links -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [FOLDER, f"{LAID}", f"{LAID}/pristine", "sglang/srt/layers"])
@pytest.mark.parametrize("command", ["apply", "revert", "status", "verify"])
def test_a_link_in_place_of_a_folder_leads_nowhere(place, command, house, tree, tmp_path):
    if place == FOLDER:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/lock").touch()
    else:
        assert house.ask("apply", "norm", "--tree", tree).code == 0
        (tree / place).rename(tmp_path / "elsewhere")
    (tree / place).symlink_to(tmp_path / "elsewhere")
    before, there = content(tree), content(tmp_path / "elsewhere")
    reply = house.ask(command, "--tree", tree)
    assert reply.code == (0 if command == "status" and place == FOLDER else 1)
    assert f"{tree / place} is a symbolic link" in reply.shown["message"]
    assert content(tree) == before
    assert content(tmp_path / "elsewhere") == there


def test_bytecode_behind_a_link_stays(house, tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    victim = tmp_path / "elsewhere/pool.cpython-311.pyc"
    victim.touch()
    (tree / "sglang/srt/__pycache__").symlink_to(tmp_path / "elsewhere")
    house.ask("apply", "--tree", tree)
    assert victim.exists()


def test_a_link_in_place_of_the_lock_is_not_written_through(house, tree, tmp_path):
    (tree / FOLDER).mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tree / FOLDER / "lock").symlink_to(victim)
    assert house.ask("apply", "--tree", tree).code == 1
    assert victim.read_text() == "mine"


# What is no file ---------------------------------------------------------------------------------


def fifo(place):
    os.mkfifo(place)


def device(place):
    try:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device is not allowed here")


KINDS = [(fifo, "a FIFO"), (device, "a device"), (os.mkdir, "a folder")]
EACH_KIND = pytest.mark.parametrize("make", [make for make, _ in KINDS])


@pytest.fixture
def ends():
    """Fails where a command waits: for a writer of a FIFO, for the end of a device."""

    def waits(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


OF_A_TREE = (POOL, f"{LAID}/norm.py", f"{LAID}/provenance.json", f"{LAID}/pristine/files.json")


# A folder in the overlay's folder is no fault: it is walked.
IN_PLACES = [
    pytest.param(path, make, called, id=f"{called.split()[-1]}-{path}")
    for path in (*OF_A_TREE, RECORD, f"{FOLDER}/plan.json")
    for make, called in KINDS
    if not (make is os.mkdir and path.startswith(LAID))
]


@pytest.mark.parametrize(("path", "make", "called"), IN_PLACES)
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_what_is_no_file_is_refused_and_stays(command, path, make, called, house, tree, ends):
    assert house.ask("apply", "norm", "--tree", tree).code == 0
    before = content(tree)
    (tree / path).unlink(missing_ok=True)
    (tree / path).parent.mkdir(exist_ok=True)
    make(tree / path)
    before.pop(path, None)
    reply = house.ask(command, "--tree", tree)
    assert reply.code == 1
    assert f"{tree / path}: it is {called}" in reply.shown["message"]
    assert f"mv {tree / path} " in reply.shown["message"]
    after = content(tree)
    after.pop(f"{FOLDER}/lock", None)
    assert after == before
    kind = stat.S_IFMT((tree / path).lstat().st_mode)
    assert kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR)
    assert house.ask("verify", "--tree", tree).code == 1
    assert called in house.ask("status", "--tree", tree).shown["message"]


@EACH_KIND
@pytest.mark.parametrize("path", ["overlay/sglang/srt/rocm_patches/norm.py", "patches/1.0/series"])
def test_a_patch_set_with_what_is_no_file_is_refused(path, make, house, tree, ends):
    before = content(tree)
    house.whole = False
    (house.home / path).unlink()
    make(house.home / path)
    assert house.ask("apply", "--tree", tree).code == 1
    assert content(tree) == before


@EACH_KIND
def test_a_lock_that_is_no_file_ends(make, house, tree, ends):
    (tree / FOLDER).mkdir()
    make(tree / FOLDER / "lock")
    done = house.ask("apply", "--tree", tree).code == 0
    assert house.ask("status", "--tree", tree).shown["status"] == (
        "patched" if done else "pristine"
    )


def test_what_takes_its_place_between_look_and_opening_is_refused_too(tree, monkeypatch, ends):
    regular = (tree / POOL).stat()
    (tree / POOL).unlink()
    os.mkfifo(tree / POOL)
    monkeypatch.setattr(Folder, "stat", lambda *_: regular)
    with Folder.at((tree / POOL).parent) as folder, pytest.raises(Refused, match="it is a FIFO"):
        folder.read("pool.py")
