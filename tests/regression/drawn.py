"""Runs as the verdict reads them, from which questions each of them got wrong."""

from ci.regression.questions import Run

N = 1319


def run(name, wrong=(), n=N, **columns) -> Run:
    wrong = set(wrong)
    return Run(name, {str(doc): doc not in wrong for doc in range(n)}, **columns)


def runs(*wrong, n=N):
    return [run(f"run {i}", each, n) for i, each in enumerate(wrong)]
