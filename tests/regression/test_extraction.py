"""Catches punctuation that is taken for a number, and a result that a later note hides."""

from decimal import Decimal

import pytest

from ci.regression.extraction import number

ANSWERS = {
    "#### 7": 7,
    "So 3 + 4 = 7 apples are left.": 7,
    "We compute.\n\n$$\n\\boxed{7}\n$$": 7,
    "The answer is $\\boxed{7}$.": 7,
    "So the total is $7.00": 7,
    "The total is 7 things, altogether,.. I think...": 7,
    "**Answer: 7**": 7,
    "#### 7\n\nNote: 100% sure": 7,
    "#### $1,007.50 a day for 3 days": Decimal("1007.5"),
    "First 8. #### 3\nNo: #### 7": 7,
    "It is -7.": -7,
    "\\boxed{x} is 7": 7,
    "####\nseven, or 7": 7,
    "Of 1..2 and 7, the rest": 7,
    "$$": None,
    "...": None,
    "": None,
    "none": None,
    "####": None,
}


@pytest.mark.parametrize("text", ANSWERS)
def test_the_number_of_an_answer(text):
    assert number(text) == ANSWERS[text]


def test_equal_numbers_are_equal_however_they_are_written():
    assert number("1,000") == number("$1000.00") == number("1000.")
    assert number("0.5") == number("$.50")
