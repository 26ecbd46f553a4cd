"""Runs a command over and over, and kills it with SIGKILL at another instant each time.

    python -I killer.py [--near] HOUSE SEED KILLS STATE...     each STATE a comma-separated set of
                                            slugs, each containing the one before

A process of its own without test tools in it, so that a fork costs little. The instant is one of
two kinds: just before the n-th change on the disk, or a random time. KILLS of them are taken, at
equal distances over the whole of every move, from another first one in each run. After each kill
the next command must bring the tree to an end: first `status`, which may not write, then a move to
one of the states, after which every byte is compared with that state as it is when nothing
interferes. Prints one JSON object: how many kills hit, how many hit the next command too, and what
was lost.
"""

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

near = ["--near"] if "--near" in sys.argv else []  # what a move of a near tree is told
_, home, seed, kills, *states = (word for word in sys.argv if word != "--near")
house, seed, kills = Path(home), int(seed), int(kills)
states = [state.split(",") if state else [] for state in states]
sys.path.insert(0, str(house))
from patchset import cli, export, fetch  # noqa: E402, F401  # the path comes first

tree = house / "tree"
random.seed(seed)
ENDS = ("finished", "undone", "given up")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.truncate")


def content() -> dict[str, bytes]:
    return {str(f.relative_to(tree)): f.read_bytes() for f in tree.rglob("*") if f.is_file()}


def run(*argv: str) -> tuple[int, dict]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        extra = near if argv[0] in ("apply", "revert") else []
        code = cli.main([*argv, *extra, "--tree", str(tree), "--json"], house)
    return code, json.loads(out.getvalue())


def move(state: list[str]) -> None:
    run("revert")
    if state:
        run("apply", *state)


def put(state: int) -> None:
    """The tree as it is in a state, from a copy."""
    shutil.rmtree(tree)
    shutil.copytree(house / f"state-{state}", tree)


def command(start: list[str], goal: list[str]) -> list[str]:
    """What leads from one state to the other: one of the two contains the other."""
    if set(start) < set(goal):
        return ["apply", *goal]
    return ["revert", *(slug for slug in start if slug not in goal)]


def watch(event: str, args: tuple) -> None:
    """Counts the changes on the disk, and ends the process when its time has come."""
    if event in CHANGES or (event == "open" and args[2] & os.O_CREAT):
        counter["changes"] += 1
        if counter["changes"] == counter["fatal"]:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(argv: list[str], instant: int | float) -> bool:
    """Whether the child was still at it when its instant came."""
    child = os.fork()
    if child == 0:
        if isinstance(instant, int):
            counter["fatal"] = counter["changes"] + instant
        run(*argv)
        os._exit(0)
    if isinstance(instant, float):
        time.sleep(instant)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


counter = {"changes": 0, "fatal": -1}
sys.addaudithook(watch)
images, instants = [], []
for number, state in enumerate(states):
    move(state)
    images.append(content())
    shutil.copytree(tree, house / f"state-{number}")
for start, goal in itertools.permutations(range(len(states)), 2):
    move(states[start])
    before, began = counter["changes"], time.monotonic()
    run(*command(states[start], states[goal]))
    changes, duration = counter["changes"] - before, time.monotonic() - began
    assert content() == images[goal]
    instants += [(start, goal, n) for n in range(1, changes + 1)]
    instants += [(start, goal, random.uniform(0, duration)) for _ in range(changes // 4)]

hits, again, lost, ends, began = 0, 0, [], Counter(), time.monotonic()
step = len(instants) / kills
first = random.uniform(0, step)
chosen = [instants[int(first + n * step)] for n in range(kills)]
# A random time may come after the end of a move: then others take its place.
for start, goal, instant in itertools.chain(chosen, random.sample(instants, len(instants))):
    if hits >= kills:
        break
    verb = command(states[start], states[goal])
    what = f"{verb} from {states[start]} killed at {instant}"
    put(start)
    if not killed(verb, instant):
        continue
    hits += 1
    left = content()
    shown = run("status")[1]
    if content() != left:
        lost.append(f"{what}: status wrote")
    if shown["status"] not in ("pristine", "patched", "partial", *(["near"] if near else [])):
        lost.append(f"{what}: {shown['status']}: {shown['message']}")
    # The next command says what became of the one that was killed, whatever it is asked; and it
    # may be killed too.
    after = random.randrange(len(states))
    following = ["apply", *states[after]] if states[after] else ["revert"]
    if random.random() < 0.3:
        again += killed(following, random.randrange(1, 60))
    code, shown = run(*following)
    if code:
        lost.append(f"{what}: {shown['message']}")
    ends[next((end for end in ENDS if end in shown["message"]), "nothing begun")] += 1
    if "given up" in shown["message"]:  # as if somebody else had changed the tree meanwhile
        lost.append(f"{what}: {shown['message']}")
    # What it left on beside what was asked goes first.
    if {slug for slug, now in shown["state"].items() if now == "on"} != {*states[after]}:
        move(states[after])
    if content() != images[after]:
        lost.append(f"{what}: bytes differ")
seconds = time.monotonic() - began
print(json.dumps({"hits": hits, "again": again, "lost": lost, "ends": ends, "seconds": seconds}))
