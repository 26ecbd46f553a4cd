"""Types of command-line options, for argparse: what they refuse says what they take."""

import argparse
import math
import shlex
from pathlib import Path


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return at_least(1, text)


def at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{text}: at least {least}")
    return value


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def points(text: str) -> float:
    """Points of accuracy, as the share that they are."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(
            f"{text!r} are no points of accuracy: a number between 0 and 100"
        )
    return value / 100


def words(text: str) -> list[str]:
    """What a shell would make of it."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def url(text: str) -> str:
    """Of a server. One without http:// would be asked in vain until --start-timeout is over."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is no URL: write http://HOST:PORT")
    return text.rstrip("/")


def result(text: str) -> Path:
    """Where a result goes: runs are kept in the folder of that name without .json."""
    path = Path(text)
    if path.suffix != ".json":
        raise argparse.ArgumentTypeError(
            f"{text!r} does not end in .json; Markdown goes beside it as .md, runs into the folder "
            "of that name without an ending"
        )
    return path
