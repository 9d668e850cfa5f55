"""Generated tasks: pairs of short texts whose rule is known, so that what a model has learnt can be checked exactly."""

import datetime
import functools
import inspect

from ..core.slots import parse
from ..words import nearest
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


def gap(r, length=100, keep=5):
    """Copy after a gap (Hochreiter and Schmidhuber, 1997, section 5; Arjovsky et al., 2016): `keep` letters, then nothing."""
    word = _word(r, keep, keep)
    return word + "." * max(1, length - keep), word


def recall(r, length=100):
    """Associative recall (Ba et al., 2016, section 4.1; Zoology, 2024): keys with values, then one of the keys."""
    pairs = max(1, min((length - 3) // 3, 26 * 26))
    keys = r.permutation(26 * 26)[:pairs]
    names, values = [LETTERS[k // 26] + LETTERS[k % 26] for k in keys], r.integers(0, 10, pairs)
    asked = int(r.integers(0, pairs))
    return "".join(f"{n}{v}" for n, v in zip(names, values)) + "?" + names[asked], str(values[asked])


HAY = (
    "rain fell on the roof",
    "the kettle is on",
    "a train left at noon",
    "nobody was at home",
    "the shop has closed",
    "bread was on the table",
    "a cat slept",
)


def needle(r, length=400):
    """A needle in a haystack (Kamradt, 2023): one sentence with a number, somewhere in a text about nothing, and a question."""
    word, number = _word(r, 4, 6), str(int(r.integers(1000, 10000)))
    hay, size = [], 0
    while size < length - 60:
        hay.append(HAY[int(r.integers(0, len(HAY)))])
        size += len(hay[-1]) + 2
    hay.insert(int(r.integers(0, len(hay) + 1)), f"the code of {word} is {number}")
    return ". ".join(hay) + f". what is the code of {word}?", number


OPERATORS = {"MAX": max, "MIN": min, "MED": lambda xs: sorted(xs)[len(xs) // 2], "SM": lambda xs: sum(xs) % 10}


def listops(r, length=100, depth=4, most=5):
    """ListOps (Nangia and Bowman, 2018): nested lists of digits under maximum, minimum, median and sum modulo 10; at most `length`
    characters."""

    def grow(level):
        if level == 0 or r.random() < 0.5:
            value = int(r.integers(0, 10))
            return str(value), value
        return tree(level)

    def tree(level):
        name = list(OPERATORS)[int(r.integers(0, 4))]
        parts = [grow(level - 1) for _ in range(int(r.integers(2, most + 1)))]
        return f"[{name} {' '.join(t for t, _ in parts)}]", OPERATORS[name]([v for _, v in parts])

    while True:
        text, value = tree(depth)
        if len(text) <= length:
            return text, str(value)


TASKS = {f.__name__: f for f in (copy, reverse, sort, addition, date, gap, recall, needle, listops)}


def read(text):
    """'recall(length=200)' -> a function of a random generator that makes one pair. Raises ValueError with what is allowed."""
    name, args, given = parse(text)
    if name not in TASKS:
        raise ValueError(f"data.source=task:{text}: there is no such task.{nearest(name, TASKS)} There are {', '.join(TASKS)}")
    known = list(inspect.signature(TASKS[name]).parameters)[1:]
    given = dict(zip(known, args)) | given
    if set(given) - set(known) or len(args) > len(known):
        raise ValueError(f"data.source=task:{text}: {name} takes {', '.join(known) or 'no arguments'}")
    for key, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"data.source=task:{text}: {key}={value!r} must be a whole number of at least 1")
    if name == "listops" and (given.get("length", 100) < 9 or given.get("most", 5) < 2):
        raise ValueError(f"data.source=task:{text}: an expression needs length=9 and most=2 at least")
    return functools.partial(TASKS[name], **given)


def make(name, count, seed=0):
    """`count` distinct pairs of a task, a function of the seed."""
    task, r, seen, tries = read(name), rng(seed, *name.encode()), {}, 0
    while len(seen) < count and tries < 50 * count:
        question, answer = task(r)
        seen[question] = answer
        tries += 1
    return list(seen.items())
