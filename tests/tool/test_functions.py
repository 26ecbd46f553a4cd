"""Catches a function taken for another, or a hook placed in text that is not the function's."""

import ast
from pathlib import Path

import pytest

from patchset.diff import blob_id, split
from patchset.functions import module

SOURCE = b'''\
"""Docs."""
import os.path
from typing import (
    Optional,
    Union as U,
)

try:
    from fast import gelu
except ImportError:
    from slow import gelu

if os.name == "posix":
    def pick(): return 1
else:
    def pick(): return 2


class Pool(dict):
    size: int = 3

    @property
    @staticmethod
    def room(
        self,
    ) -> Optional[int]:
        def inner(x):
            return gelu(x)

        return inner(self.size)

    class Page:
        async def read(self): ...
    def next(self): return 1


def last():
    return U
'''


def spans(data):
    return {(f.name, f.start + 1, f.end) for f in module(data).functions}


def test_functions_are_known_by_qualified_name_with_decorators_and_what_they_hold():
    assert spans(SOURCE) == {
        ("pick", 14, 14),
        ("pick", 16, 16),
        ("Pool.room", 22, 30),
        ("Pool.Page.read", 33, 33),
        ("Pool.next", 34, 34),
        ("last", 37, 38),
    }


@pytest.mark.parametrize(
    ("name", "lines"),
    [("Pool.room", [23, 28, 30]), ("last", [38]), (None, [3, 14, 19, 22, 31, 34, 37, 39])],
)
def test_a_line_that_comes_in_before_another_is_in_the_function_that_both_belong_to(lines, name):
    for line in lines:
        found = module(SOURCE).function_at(line - 1)
        assert (found.name if found else None) == name, line


def test_lines_that_reach_over_the_functions_end_are_in_none():
    assert module(SOURCE).function_at(28, 30).name == "Pool.room"
    assert module(SOURCE).function_at(28, 31) is None


def test_the_hash_is_of_the_exact_text():
    read = module(SOURCE)
    (room,) = read.named("Pool.room")
    assert room.blob(read.lines) == blob_id(b"".join(split(SOURCE)[21:30]))
    moved = module(b"# one more line\n" + SOURCE.replace(b"class Pool", b"X = 1\nclass Pool"))
    assert moved.named("Pool.room")[0].blob(moved.lines) == room.blob(read.lines)
    other = module(SOURCE.replace(b"return inner", b"return  inner"))
    assert other.named("Pool.room")[0].blob(other.lines) != room.blob(read.lines)


def test_names_are_followed_to_the_import_that_binds_them():
    read = module(SOURCE)
    (room,) = read.named("Pool.room")
    assert read.origins(room.names()) == {
        "Optional": "typing.Optional",
        "gelu": "fast.gelu | slow.gelu",
    }
    assert read.origins(["os", "U"]) == {"os": "os", "U": "typing.Union"}
    assert module(b"from . import a\nfrom ..b import c as d\nimport x.y as z\n").origins("adz") == {
        "a": "..a",
        "d": "..b.c",
        "z": "x.y",
    }


def test_every_place_of_the_standard_librarys_ast_module_is_as_python_counts_it():
    data = Path(ast.__file__).read_bytes()
    read = module(data)
    assert len(read.functions) > 100
    for function in read.functions:
        text = function.text(read.lines).decode()
        indent = len(text) - len(text.lstrip())
        text = "\n".join(line[indent:] for line in text.splitlines())
        (node,) = ast.parse(text).body
        assert node.name == function.name.rpartition(".")[2]


@pytest.mark.parametrize("data", [b"def f(:\n", b"\0", b"x = 1\r\n", b"\xff\n"])
def test_what_cannot_be_parsed_has_no_functions(data):
    assert module(data) is None
