"""Fixtures of the whole suite.

    platform   a tests.platform.Platform: .name rocm | cuda | cpu, .arch gfx942 | gfx950, .device,
               .fp8_dtype, .fp8_max (240 | 448), .act_quant_max (224 | 448), .ck_truncates_bf16,
               .triton_fp8, .lds_bytes. Chosen by what the machine has; `--platform` and `--arch`
               force it; a test runs once for each architecture that the platform stands for.
    seed       an integer, new in every run, printed in the header, set by `--seed`. The global
               generators of torch and Python are seeded from it and the test's name before each
               test, so plain torch.randn is fresh and repeatable.
    release    the name of a release that has a series, each in turn; `--release` chooses one. In a
               ROCm image that is the image's own.

Beside them: tests/platform/tensors.py (poisoned, strided, boundaries, ODD_SIZES),
tests/tolerances.py (assert_close, assert_bitwise), tests/kernels/aot.py (machine code for AMD).
`overlay/` is on the path, so `import sglang.srt.rocm_patches.<module>` finds the overlay's modules
without sglang. What needs an sglang tree runs in a process of its own (tests/platform/arm.py);
`--patched-tree TREE` puts another tree in the patched one's place, for example a faulty one.
"""

import importlib.util
import random
import secrets
import sys
import zlib
from pathlib import Path

import pytest

from evidence.plugin import Evidence, without_group
from tests.kernels import aot
from tests.platform import trees, value

ROOT = Path(__file__).resolve().parents[1]
# Releases of which ci/test without --long runs the modules of one chip.
BY_DEFAULT = {"0.5.12.post1": "gfx942", "0.5.16": "gfx950"}


def pytest_addoption(parser):
    group = parser.getgroup("platform")
    group.addoption("--platform", choices=["rocm", "cuda", "cpu"], help="default: what is there")
    group.addoption("--arch", choices=value.ARCHS, help="default: all that the platform stands for")
    group.addoption("--aot-triton", type=Path, help="a folder with the Triton of an image")
    group.addoption("--evidence", type=Path, help="a folder for what a green run has shown")
    group.addoption("--release", choices=trees.RELEASES, help="default: all that have a series")
    group.addoption("--patched-tree", type=Path, help="default: the series applied to a copy")
    group.addoption("--sglang-tests", type=Path, help="a checkout of sglang, for tests/peers")
    group.addoption("--seed", type=int, help="default: a new one for every run")


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # pytest-xdist: all workers share the seed
        config.option.seed = config.workerinput["seed"]
    elif config.option.seed is None:
        config.option.seed = secrets.randbelow(1 << 31)
    trees.given_instead = config.option.patched_tree
    if config.option.patched_tree and not config.option.release:
        raise pytest.UsageError("--patched-tree TREE needs --release, the one that TREE is of")
    aot.triton_folder = config.option.aot_triton
    if aot.triton_folder and not (aot.triton_folder / "triton").is_dir():
        raise pytest.UsageError(f"--aot-triton: no Triton in {aot.triton_folder}")
    config.platforms = []
    if importlib.util.find_spec("torch") is None:  # the tool's own tests do without
        return
    sys.path.insert(0, str(ROOT / "overlay"))
    name = config.option.platform or value.choose()
    try:
        value.prepare(name)
        config.platforms = value.available(name, config.option.arch)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    if config.option.evidence and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Evidence(config, config.option.evidence))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header(config):
    names = ", ".join(map(str, config.platforms)) or "none, torch is not installed"
    return [f"platform: {names}", f"seed: {config.option.seed}"]


def pytest_generate_tests(metafunc):
    if "release" in metafunc.fixturenames:
        chosen = metafunc.config.option.release
        metafunc.parametrize("release", [chosen] if chosen else trees.RELEASES, scope="session")
    if "platform" in metafunc.fixturenames:
        metafunc.parametrize("platform", metafunc.config.platforms, ids=str, scope="session")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    for item in items:
        if _is_for_the_long_run(item):
            item.add_marker(pytest.mark.long)
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))
    if config.option.aot_triton is None and any(p.name == "cuda" for p in config.platforms):
        # One of them, 3.6.0 as torch 2.11 has it, fails an assertion of its own on e4m3fnuz.
        reason = "an NVIDIA machine's Triton is no AMD image's; name one by --aot-triton"
        for item in items:
            if item.get_closest_marker("aot"):
                item.add_marker(pytest.mark.skip(reason=reason))


def _is_for_the_long_run(item) -> bool:
    """The other chip's modules of a release whose kernels and guards another release proves too."""
    given = getattr(item, "callspec", None)
    release, platform = (given.params.get(x) if given else None for x in ("release", "platform"))
    if item.config.option.release or item.path.parent.name != "modules" or platform is None:
        return False
    return platform.arch != BY_DEFAULT.get(release, platform.arch)


def _group(item) -> str | None:
    """The pytest-xdist group of a test: tests that share arms run in one worker."""
    if item.get_closest_marker("xdist_group"):
        return None  # the test's module sets the group
    layer = item.path.parent.name
    if layer in ("modules", "engine") or item.path.stem == "test_emulation":
        given = getattr(item, "callspec", None)
        told = [str(value) for value in given.params.values()] if given else []
        if item.config.option.release and len(item.config.platforms) == 1:
            # All tests share the same arms; in one group, a single worker would run all of them.
            return " ".join(sorted(told)) if layer == "engine" else item.path.stem
        releases = [r for r in trees.RELEASES if any(t == r or t.startswith(f"{r}-") for t in told)]
        platforms = [str(each) for each in item.config.platforms if str(each) in told]
        return " ".join(["arms of", *(releases or trees.RELEASES[-1:]), *platforms])
    if layer == "image":
        return layer  # each worker lays out the image once
    if layer in ("bench", "regression"):
        return item.path.stem  # each worker records calls and starts servers once
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and (told := compared(item)):
        report.sections.append(("compared", told))
    return report


def compared(item) -> str | None:
    """For the report of a failure: its layer, the slugs that it is about, the arms that ran."""
    layer = item.path.parent.name
    if layer not in ("kernels", "modules", "engine"):
        return None
    given = getattr(item, "funcargs", {})
    slugs = getattr(given.get("case"), "slugs", None) or [trees.slug_of(item.module)]
    arms = dict.fromkeys(getattr(given.get("arms"), "used", ()))
    return f"layer {layer}, {', '.join(slugs)}" + (f"; arms: {', '.join(arms)}" if arms else "")


@pytest.fixture
def seed(request) -> int:
    return zlib.crc32(without_group(request.node.nodeid).encode(), request.config.option.seed)


@pytest.fixture(autouse=True)
def _fresh_and_repeatable_random_numbers(seed):
    random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
