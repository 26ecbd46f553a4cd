#!/usr/bin/env python3
"""Time the kernels on this GPU, beside upstream's, the sequence before them and the memory floor.

    python3 bench/run.py                      every subject, into evidence/
    python3 bench/run.py rope-kv-store        one or some
    python3 bench/run.py --quick              few sizes, to look at while working; writes nothing

A subject is a slug, or nsa-fp8-kv-sparse-mla, which needs TileLang. The kernel tests of a subject
run first; a subject with failing tests is not timed. This needs torch 2.8, Triton, pytest and the
pristine release, which is fetched into build/ once. It uses aiter, sgl_kernel and TileLang if they
are installed.

Exit codes: 0 done, 1 a subject's tests are red and nothing of it was timed, 2 wrong usage or
something is missing.
"""

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ci.entry import needs, run  # noqa: E402  # the folder above is put on the path first
from tests.platform import value  # noqa: E402

SUBJECTS = (
    "layernorm",
    "indexer",
    "nsa-fp8-kv",
    "nsa-fp8-kv-sparse-mla",
    "rope-kv-store",
    "fp8-kv-write",
)
NEEDS = {"nsa-fp8-kv-sparse-mla": "tilelang"}
QUICK_TOKENS, QUICK_TENSOR_PARALLEL = (1, 64, 1024, 8192), (1, 8)
WORKERS, TEST_WORKERS = 15, 4  # of compilation, of one subject's tests
# No kernel's form changes above, and so many workers share the memory of one GPU.
COMPILED_TOKENS = 8192


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("subjects", nargs="*", metavar="SLUG", help=", ".join(SUBJECTS))
    parser.add_argument("--device", choices=["cuda", "rocm"], help="default: what is there")
    parser.add_argument("--quick", action="store_true", help="few sizes; writes nothing")
    options = parser.parse_args()
    needs("torch", "triton", "pytest")
    subjects = chosen(parser, options.subjects)
    there = value.choose()
    if there == "cpu" or options.device not in (None, there):
        parser.error(
            f"no {options.device or 'cuda or rocm'} GPU: torch finds "
            + {"cpu": "none", "cuda": "an NVIDIA one", "rocm": "an AMD one"}[there]
        )
    platform = value.available(there)[0]
    from bench import report, upstream  # torch is there

    upstream.install(platform)
    red = run_tests(subjects, there)
    subjects = [subject for subject in subjects if subject not in red]
    compile_ahead(subjects, platform, options.quick)
    ruler = None
    for subject in subjects:
        from bench import harness  # Triton and torch on the GPU: not before the tests are done

        ruler = ruler or harness.measure_ruler()
        rows = []
        for case in cases(subject, platform, options.quick):
            rows.append(ruler.row(case))
            report.show(subject, rows)
        if not options.quick:
            path = report.write(subject, rows, ruler)
            print(f"{path.relative_to(ROOT)} written", flush=True)
    return 1 if red else 0


def chosen(parser: argparse.ArgumentParser, named: list[str]) -> list[str]:
    unknown = [name for name in named if name not in SUBJECTS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(SUBJECTS)}")
    lacking = {
        subject: package
        for subject, package in NEEDS.items()
        if subject in (named or SUBJECTS) and importlib.util.find_spec(package) is None
    }
    for subject, package in lacking.items():
        if subject in named:
            parser.error(f"{subject} needs {package}, which is not installed")
        print(f"{subject}: left out, {package} is not installed")
    return [subject for subject in named or SUBJECTS if subject not in lacking]


def run_tests(subjects: list[str], platform: str) -> list[str]:
    """Run the kernel tests of all subjects, side by side; those whose are red."""
    parallel = ["-n", str(TEST_WORKERS)] if importlib.util.find_spec("xdist") else []
    options = ["--platform", platform, "-q", "-m", "not aot", "-p", "no:cacheprovider", *parallel]
    print(f"running the kernel tests of {', '.join(subjects)}", flush=True)
    running = {
        subject: subprocess.Popen(
            [sys.executable, "-m", "pytest", f"tests/kernels/test_{_file(subject)}.py", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for subject in subjects
    }
    red = []
    for subject, process in running.items():
        output, _ = process.communicate()
        if process.returncode:
            print(output)
            print(f"{subject}: its kernel tests are red, so nothing of it is timed", flush=True)
            red.append(subject)
        else:
            print(f"{subject}: {output.strip().splitlines()[-1]}", flush=True)
    return red


def cases(subject: str, platform: value.Platform, quick: bool) -> list:
    every = list(importlib.import_module(f"bench.{_file(subject)}").cases(platform))
    if not quick:
        return every
    return [
        case for case in every if case.tokens in QUICK_TOKENS and case.tp in QUICK_TENSOR_PARALLEL
    ]


def _file(subject: str) -> str:
    return subject.replace("-", "_")


def compile_ahead(subjects: list[str], platform: value.Platform, quick: bool) -> None:
    """Every kernel into the compilers' caches on disk, by as many processes as help."""
    jobs = [
        (subject, platform, quick, group)
        for subject in subjects
        for group in dict.fromkeys(case.group for case in cases(subject, platform, quick))
    ]
    print(f"compiling the kernels of {len(jobs)} shapes", flush=True)
    workers = max(min(WORKERS, (os.cpu_count() or 2) - 1, len(jobs)), 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        done = as_completed([pool.submit(call_once, *job) for job in jobs])
        for number, job in enumerate(done, 1):
            job.result()
            if number % 10 == 0 or number == len(jobs):
                print(f"compiled {number} of {len(jobs)}", flush=True)


def call_once(subject: str, platform: value.Platform, quick: bool, group: tuple) -> None:
    import torch

    from bench import upstream

    upstream.install(platform)
    for case in cases(subject, platform, quick):
        if case.group == group and case.tokens <= COMPILED_TOKENS:
            for call in case.build().all().values():
                call(0)
            torch.cuda.empty_cache()
    torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(run("bench/run.py", main))
