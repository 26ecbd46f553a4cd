"""A process that answers: one JSON object a line in, one out, in the order of the questions."""

import atexit
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class WorkerError(Exception):
    """What went wrong in the worker: its traceback, or how it ended."""


class Worker:
    """`python -m module`, which calls `serve`, kept for the life of this process."""

    def __init__(self, module: str, environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        atexit.register(self.close)

    def ask(self, request: dict) -> dict:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(f"the worker ended with {self.process.wait()}") from None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"the worker ended with {self.process.wait()} on {request}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        atexit.unregister(self.close)


def serve(answer_to) -> None:
    """Answer what comes on stdin. What anything prints meanwhile goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        try:
            answer = answer_to(**json.loads(line))
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
