"""Catches a test of sglang's own that comes to something else on a patched tree.

python -m pytest tests/peers                          the files that the release's wheel carries
python -m pytest tests/peers --sglang-tests CHECKOUT  those of a git checkout, or of any folder
"""

import pytest

from tests.peers.published import differences, files, outcomes
from tests.platform.trees import packages, patched_tree, pristine_tree

SAME = """
import torch, sglang
def test_that_is_the_same(): assert torch.version.hip
class TestLayerNorm:
    def test_that_fails_in_both(self): assert False, sglang.__file__
"""
OTHER = """
import importlib.util, sglang.srt
def test_layernorm(): assert not importlib.util.find_spec("sglang.srt.rocm_patches")
"""


def compared(file, release, platform) -> list[str]:
    trees = pristine_tree(release), patched_tree(release)
    return differences(*(outcomes(file, platform, tree, packages(release)) for tree in trees))


@pytest.mark.slow
def test_what_differs_is_named_and_what_fails_in_both_arms_is_not(tmp_path, release, platform):
    same, other = tmp_path / "test_same.py", tmp_path / "test_other.py"
    same.write_text(SAME)
    other.write_text(OTHER)
    assert list(files(tmp_path)) == [other, same]
    assert compared(same, release, platform) == []
    [found] = compared(other, release, platform)
    assert found.startswith("test_other::test_layernorm: pristine passed, patched failure")


def test_a_file_that_serves_or_is_about_something_else_is_left_out(tmp_path):
    (tmp_path / "test_a.py").write_text("from sglang.test.test_utils import popen_launch_server")
    (tmp_path / "test_b.py").write_text("import sglang.srt.parser")
    (tmp_path / "test_c.py").write_text("import sglang.srt.layers.layernorm")
    assert [file.name for file in files(tmp_path)] == ["test_c.py"]


@pytest.mark.long
@pytest.mark.slow
def test_sglangs_own_tests_come_to_the_same_in_both_arms(request, release, platform):
    folder = request.config.option.sglang_tests or pristine_tree(release) / "sglang" / "test"
    chosen = list(files(folder))
    assert chosen, f"{folder} has no test file that needs no server"
    found = [
        f"{file.name}: {each}" for file in chosen for each in compared(file, release, platform)
    ]
    print("\n".join([f"{len(chosen)} files of {folder}", *found]))
    assert not found, "\n".join(found)
