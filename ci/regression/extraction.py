r"""The number that an answer gives, if it gives one.

By lm-eval's flexible filter, the last thing that looks like a number, with two corrections: it must
hold a digit (the filter takes "$$" and "..." for numbers), and what an answer marks as its result
(`#### 7`, as GSM8K's own answers do, or \boxed{7}) goes before what a later note says.
"""

import re
from decimal import Decimal, InvalidOperation

# What lm-eval's flexible-extract of gsm8k.yaml finds.
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_MARKED = (re.compile(r"####(.*)"), re.compile(r"\\boxed\{([^\n]*)"))


def number(text: str) -> Decimal | None:
    """None: no number found."""
    for mark in _MARKED:
        if marked := mark.findall(text):
            found = _numbers(marked[-1])
            if found:
                return found[0]
    found = _numbers(text)
    return found[-1] if found else None


def _numbers(text: str) -> list[Decimal]:
    return [value for word in _FLEXIBLE.findall(text) if (value := _value(word)) is not None]


def _value(word: str) -> Decimal | None:
    """7, also of $7.00 and 7. and 1,007"""
    try:
        value = Decimal(word.replace("$", "").replace(",", "").rstrip("."))
    except InvalidOperation:
        return None
    return value
