"""Request and reply with a child process: one JSON object per line each way, in order."""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]


class WorkerError(Exception):
    """What went wrong in the worker: its traceback, or how it ended."""


class Worker:
    """The asking end of a process that calls `serve`; it ends with this process at the latest."""

    def __init__(self, questions: TextIO, answers: TextIO):
        self.questions, self.answers = questions, answers
        self.ended: str | None = None
        atexit.register(self.close)

    def finish(self) -> str:
        """Wait for the end, if that can be waited for, and say how it ended."""
        raise NotImplementedError

    def ask(self, request: dict) -> dict:
        try:
            self.questions.write(json.dumps(request) + "\n")
            self.questions.flush()
            line = self.answers.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = ""
        if not line:
            self.close()
            raise WorkerError(f"{self.ended} on {request}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        if self.ended is not None:
            return
        with contextlib.suppress(BrokenPipeError):  # it did not read the last question
            self.questions.close()
        self.ended = self.finish()
        self.answers.close()
        atexit.unregister(self.close)


class Process(Worker):
    """`python -m module`, which calls `serve`."""

    def __init__(self, module: str, environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        super().__init__(self.process.stdin, self.process.stdout)

    def finish(self) -> str:
        return f"the worker ended with {self.process.wait()}"


def stdout_for_answers() -> TextIO:
    """What stdout was. What anything prints from now on goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def serve(answer_to, questions: TextIO, answers: TextIO) -> None:
    """Answer what comes, to the end."""
    for line in questions:
        try:
            answer = answer_to(**json.loads(line))
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
