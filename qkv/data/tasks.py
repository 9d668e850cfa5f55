"""Generated tasks: pairs of short texts whose rule is known, so that what a model has learnt can be checked exactly."""

import datetime

from .batches import rng

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]


def _word(r, low=3, high=10):
    return "".join(LETTERS[i] for i in r.integers(0, 26, int(r.integers(low, high + 1))))


def copy(r):
    word = _word(r)
    return word, word


def reverse(r):
    word = _word(r)
    return word, word[::-1]


def sort(r):
    word = _word(r)
    return word, "".join(sorted(word))


def addition(r):
    a, b = (int(r.integers(0, 10 ** int(r.integers(1, 4)))) for _ in "ab")
    return f"{a}+{b}", str(a + b)


def date(r):
    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=int(r.integers(0, 73049)))
    month, weekday = MONTHS[day.month - 1], day.strftime("%A")
    forms = (
        f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}", f"{weekday}, {day.day} {month[:3]} {day.year}",
        f"{day.day:02d}/{day.month:02d}/{day.year}", f"{day.day}.{day.month}.{day.year}", f"{month[:3]} {day.day:02d} {day.year}",
    )  # fmt: skip
    return forms[int(r.integers(0, len(forms)))], day.isoformat()


TASKS = {f.__name__: f for f in (copy, reverse, sort, addition, date)}


def make(name, count, seed=0):
    """`count` distinct pairs of a task, a function of the seed."""
    r, seen, tries = rng(seed, *name.encode()), {}, 0
    while len(seen) < count and tries < 50 * count:
        question, answer = TASKS[name](r)
        seen[question] = answer
        tries += 1
    return list(seen.items())
