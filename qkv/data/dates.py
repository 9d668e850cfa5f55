"""Dates: the cells of a column -> times -> the frequency of their calendar -> the times that follow.

A frequency is a pandas offset of the calendar (a month, a business day, a day: the clock on the wall stays),
or a Timedelta (an hour: time that passes). One rule decides it: it is right if it leads from each time of the
column to the next.

Dims: T times.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .text import DataError

if TYPE_CHECKING:
    import pandas as pd

MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

NAME = r"(?P<name>" + "|".join(f"{m[:3]}(?:{m[3:]})?" for m in MONTHS) + r"|sept)\.?"
CLOCK = (
    r"(?:(?:[T ]|,\s)\s*(?P<H>\d{1,2})(?::?(?P<M>\d\d)(?::?(?P<S>\d\d(?:[.,]\d{1,9})?))?)?"
    r"\s*(?P<half>[ap]\.?m\.?)?\s*(?P<zone>Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?)?"
)
FORMS = tuple(  # how times may be written; day and month that are both numbers are `one` and `two`
    re.compile(form, re.IGNORECASE)
    for form in (
        r"(?P<y>\d{4})",
        r"(?P<y>\d{4})[-/ ]?Q(?P<quarter>[1-4])",
        r"Q(?P<quarter>[1-4])[-/ ]?(?P<y>\d{4})",
        r"(?P<y>\d{4})[-/M](?P<m>\d{1,2})",
        r"(?P<m>\d{1,2})[-/](?P<y>\d{4})",
        rf"{NAME}[-/ ,]*(?P<y>\d{{4}})",
        rf"(?P<y>\d{{4}})[-/ ]*{NAME}",
        rf"{NAME}[-/ ]*'?(?P<yy>\d\d)",
        r"(?P<y>\d{4})-?W(?P<week>\d\d)(?:-?(?P<weekday>[1-7]))?",
        rf"(?P<y>\d{{4}})(?P<sep>[-/.])(?P<m>\d{{1,2}})(?P=sep)(?P<d>\d{{1,2}}){CLOCK}",
        rf"(?P<y>\d{{4}})(?P<m>\d\d)(?P<d>\d\d){CLOCK}",
        rf"(?P<d>\d{{1,2}})[-/. ]*{NAME}[-/, ]*(?P<y>\d{{4}}){CLOCK}",
        rf"{NAME} *(?P<d>\d{{1,2}}),? +(?P<y>\d{{4}}){CLOCK}",
        rf"(?P<one>\d{{1,2}})(?P<sep>[-/.])(?P<two>\d{{1,2}})(?P=sep)(?P<y>\d{{4}}){CLOCK}",
        r"(?P<s>\d{9,10}(?:\.\d*)?)",  # since 1970: from 1973 to 2286 in seconds, and so on
        r"(?P<ms>\d{12,13})",
        r"(?P<us>\d{15,16})",
        r"(?P<ns>\d{18,19})",
    )
)
SINCE = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
ISO = "ISO dates are read: 2004, 2004-03, 2004-03-10, 2004-03-10 18:00, 2004-03-10T18:00:00Z"


@dataclass(frozen=True)
class Column:
    """The cells of a column, and the numbers of their rows."""

    path: Path
    name: str
    rows: list[int]
    cells: list[str]

    def where(self, i: int) -> str:
        return f"{self.path}, row {self.rows[i]}"

    def fault(self, i: int, what: str) -> DataError:
        return DataError(f"{self.where(i)}: '{self.cells[i]}' in the column '{self.name}' {what}")


@dataclass(frozen=True)
class Dated:
    """times (T,) in order; order (T,): of the rows.

    frequency: leads from one time to the next. ends: the last time, once for each time zone whose clock fits
    the column. notes: what was decided, a sentence each.
    """

    order: np.ndarray
    times: pd.DatetimeIndex
    frequency: Any
    ends: list[pd.Timestamp]
    notes: tuple[str, ...] = ()


def dated(column: Column) -> Dated:
    """The times of a column and their frequency.

    Where day and month are both numbers (10/03/2004), the whole column decides which is which: by a number
    above 12, else by which of the two ways has a frequency. Raises DataError.
    """
    matches = matched(column)
    clocks, offsets = clocks_of(column, matches)
    if "one" not in matches[0].re.groupindex:
        days, notes = days_of(column, matches)
        return ordered(column, walls(column, days, clocks), offsets, notes)
    high = [next((i for i, m in enumerate(matches) if int(m[name]) > 12), None) for name in ("one", "two")]
    ways = []
    for day, month in (("one", "two"), ("two", "one")):
        ways.append([f"{m['y']}-{m[month]:0>2}-{m[day]:0>2}" for m in matches])
    if high[0] is not None and high[1] is not None:
        other = column.cells[high[1]]
        raise column.fault(high[0], f"has the day first, {other!r} the month; write ISO dates (2004-03-10)")
    if high != [None, None] or ways[0] == ways[1]:
        return ordered(column, walls(column, ways[0 if high[1] is None else 1], clocks), offsets)
    found = []
    for days in ways:
        with contextlib.suppress(DataError):  # this way they have no frequency
            found.append(ordered(column, walls(column, days, clocks), offsets))
    if len(found) != 1:
        which = "may have the day or the month first, and no row tells which"
        raise column.fault(0, f"{which}; write ISO dates (2004-03-10)")
    return found[0]


# What is written


def matched(column: Column) -> list[re.Match]:
    """The cells, matched by the form that the first has.

    Raises DataError for one that has another, or none.
    """
    form = next((f for f in FORMS if f.fullmatch(column.cells[0])), None)
    if form is None:
        raise column.fault(0, f"is no time that can be read. {ISO}")
    matches = []
    for i, cell in enumerate(column.cells):
        match = form.fullmatch(cell)
        if match is None:
            raise column.fault(i, f"is not written as {column.cells[0]!r} of row {column.rows[0]} is. {ISO}")
        matches.append(match)
    return matches


def days_of(column: Column, matches: list[re.Match]) -> tuple[list[str], tuple[str, ...]]:
    """(ISO dates, notes) of matches; the first day where a cell names none."""
    kind = matches[0].re.groupindex
    if "yy" in kind:
        return with_century(column, matches)
    for unit in SINCE:
        if unit in kind:
            import pandas as pd

            count = [float(m[unit]) if unit == "s" else int(m[unit]) for m in matches]
            note = f"{column.path}: '{column.name}' is read as {SINCE[unit]} since 1970, in UTC"
            return [str(t) for t in pd.to_datetime(count, unit=unit)], (note,)
    if "week" in kind:
        return [monday(column, i, m) for i, m in enumerate(matches)], ()
    return [f"{m['y']}-{month_of(m):02}-{int(m.groupdict().get('d') or 1):02}" for m in matches], ()


def month_of(match: re.Match) -> int:
    """The month of a match, 1 where a cell names only a year."""
    parts = match.groupdict()
    if parts.get("name"):
        return [m[:3] for m in MONTHS].index(parts["name"][:3].lower()) + 1
    return 3 * int(parts["quarter"]) - 2 if parts.get("quarter") else int(parts.get("m") or 1)


def monday(column: Column, i: int, match: re.Match) -> str:
    """The day of an ISO week, its Monday where the cell names none.

    Raises DataError for a week that the year does not have.
    """
    try:
        year, week, day = int(match["y"]), int(match["week"]), int(match["weekday"] or 1)
        return str(datetime.date.fromisocalendar(year, week, day))
    except ValueError:
        raise column.fault(i, f"is no week of the calendar. {ISO}") from None


def with_century(column: Column, matches: list[re.Match]) -> tuple[list[str], tuple[str, ...]]:
    """(ISO dates, notes) of months with two digits of the year (Jan-49): the latest that is not after this
    year. Raises DataError where the rows are then in no order, or where the two digits may be a day.
    """
    this = datetime.date.today().year
    years = [2000 + int(m["yy"]) - (100 if 2000 + int(m["yy"]) > this else 0) for m in matches]
    days = [f"{y}-{month_of(m):02}-01" for y, m in zip(years, matches)]
    maybe_days = len({month_of(m) for m in matches}) == 1 and all(0 < int(m["yy"]) <= 31 for m in matches)
    if maybe_days or days not in (sorted(days), sorted(days, reverse=True)):
        raise column.fault(0, "may be of several years; write ISO dates (1949-01)")
    return days, (f"{column.path}: '{column.cells[0]}' in '{column.name}' is read as {days[0][:7]}",)


def clocks_of(column: Column, matches: list[re.Match]) -> tuple[list[str], np.ndarray | None]:
    """(clock times as ISO 8601, minutes that each is ahead of UTC) of matches; None where no cell has a time
    zone. Raises DataError where some cells have one and others not.
    """
    kind = matches[0].re.groupindex
    if "zone" not in kind:
        return [""] * len(matches), np.zeros(len(matches), dtype=int) if kind.keys() & SINCE.keys() else None
    clocks = []
    for m in matches:
        hour = int(m["H"] or 0)
        if m["half"]:  # 12 am is midnight, and 13 pm no time
            hour = hour % 12 + (12 if m["half"][0] in "pP" else 0) if 0 < hour <= 12 else 99
        clocks.append(f" {hour:02}:{m['M'] or '00'}:{(m['S'] or '00').replace(',', '.')}")
    has = [bool(m["zone"]) for m in matches]
    if all(has):
        return clocks, np.array([minutes(m["zone"]) for m in matches])
    if any(has):
        other = column.cells[has.index(True)]
        raise column.fault(has.index(False), f"has no time zone, and {other!r} has; give all one, or none")
    return clocks, None


def minutes(zone: str) -> int:
    """Minutes ahead of UTC: +01:00, +0100, +01, Z."""
    if zone[0] not in "+-":
        return 0
    digits = zone[1:].replace(":", "")
    return (int(digits[:2]) * 60 + int(digits[2:] or 0)) * (-1 if zone[0] == "-" else 1)


def walls(column: Column, days: list[str], clocks: list[str]) -> pd.DatetimeIndex:
    """(T,) what calendar and clock on the wall showed.

    Raises DataError for a day or a time that there is not.
    """
    import pandas as pd

    found = pd.to_datetime([d + c for d, c in zip(days, clocks)], format="ISO8601", errors="coerce")
    if found.isna().any():
        raise column.fault(int(found.isna().argmax()), f"is no time of the calendar. {ISO}")
    return found


# Order and frequency


def ordered(
    column: Column,
    wall: pd.DatetimeIndex,
    offsets: np.ndarray | None,
    notes: tuple[str, ...] = (),
) -> Dated:
    """The times in order, with their frequency.

    offsets: minutes that each is ahead of UTC. Raises DataError where they have none.
    """
    first = None
    for order, times, ends, more in readings(wall, offsets):
        first = first or (order, times)
        if (gaps(times) > np.timedelta64(0)).all():
            for frequency in frequencies(times):
                if leads(times, frequency).all():
                    times = times.tz_localize(None) if offsets is None else times
                    more = tuple(f"{column.path}: {n}" for n in more)
                    return Dated(order, times, frequency, ends, notes + more)
    assert first is not None
    order, times = first
    near = snapped(times)
    if near is None:
        raise refused(column, order, times)
    frequency, off = steady(near), span(abs(near - times).max())
    late = f"{column.path}: times are up to {off} off a step of {spoken(frequency)}; those to come are not"
    return Dated(order, times, frequency, [near[-1]], (*notes, late))


def readings(
    wall: pd.DatetimeIndex,
    offsets: np.ndarray | None,
) -> Iterator[tuple[np.ndarray, pd.DatetimeIndex, list[pd.Timestamp], tuple[str, ...]]]:
    """(order of the rows, times, the last time in each time zone that fits, notes) of every way to read them,
    the plainest first.
    """
    import pandas as pd

    if offsets is None:
        order = np.argsort(wall, kind="stable")
        yield order, wall[order], [wall[order][-1]], ()
        rows = np.arange(len(wall))
        # of an hour that is there twice, the order of the rows says which is the first
        for by in [order] if wall.is_unique else [rows, rows[::-1]]:
            times, ends = changed(wall[by])
            if times is not None:
                yield by, times, ends, (f"the clock changes as in {named([e.tz for e in ends])}",)
        return
    utc = (wall - pd.to_timedelta(offsets, unit="m")).tz_localize("UTC")
    order = np.argsort(utc, kind="stable")
    utc, wall, offsets = utc[order], wall[order], offsets[order]
    jumps = np.nonzero(np.diff(offsets))[0]
    if not len(jumps):
        zone = datetime.timezone(datetime.timedelta(minutes=int(offsets[0]))) if offsets[0] else "UTC"
        yield order, utc.tz_convert(zone), [utc[-1].tz_convert(zone)], ()
        return
    some = [0, *jumps[:4], *jumps[:4] + 1]  # few, so that most time zones are soon left out
    shown = [(utc[i].to_pydatetime(), datetime.timedelta(minutes=int(offsets[i]))) for i in some]
    fit = [z for z in all_zones() if all(t.astimezone(z).utcoffset() == offset for t, offset in shown)]
    fit = [z for z in fit if (utc.tz_convert(z).tz_localize(None) == wall).all()]
    if fit:
        note = f"the clock changes as in {named(fit)}"
        yield order, utc.tz_convert(fit[0]), [utc[-1].tz_convert(z) for z in fit], (note,)
    yield order, utc, [utc[-1]], ("the times have the offsets of no one time zone; they are put in UTC",)


@functools.cache
def all_zones() -> list[zoneinfo.ZoneInfo]:
    return [zoneinfo.ZoneInfo(name) for name in sorted(zoneinfo.available_timezones())]


def named(found: list) -> str:
    return str(found[0]) + (f" and {len(found) - 1} other time zones" if len(found) > 1 else "")


def changed(wall: pd.DatetimeIndex) -> tuple[pd.DatetimeIndex | None, list[pd.Timestamp]]:
    """(times, the last time in each time zone that fits) where some clock shows a steady step like this,
    because it was changed: an hour is left out in spring, and there twice in autumn. (None, []) where none
    does.
    """
    import pandas as pd

    step = usual(wall)
    jump = gaps(wall) - step
    odd = np.nonzero(jump)[0]
    short = pd.Timedelta(0) < step < pd.Timedelta(days=1)
    if not len(odd) or not short or (abs(jump) > pd.Timedelta(hours=2)).any():
        return None, []
    here, there = (wall[i].to_pydatetime() for i in (odd[0], odd[0] + 1))
    found, ends = None, []
    for zone in all_zones():
        offset = (here - datetime.timedelta(days=1)).replace(tzinfo=zone).utcoffset()
        then = (here - offset).replace(tzinfo=datetime.UTC) + step
        if then.astimezone(zone).replace(tzinfo=None) != there:
            continue
        for summer in (True, False):  # of a first time that is there twice
            start = wall[0].tz_localize(zone, ambiguous=summer, nonexistent="NaT")
            if start is pd.NaT:
                continue
            times = pd.date_range(start, periods=len(wall), freq=step)
            if (times.tz_localize(None) == wall).all():
                found = times if found is None else found
                ends.append(times[-1])
                break
    return found, ends


def gaps(times: pd.DatetimeIndex) -> np.ndarray:
    """(T - 1,) time from each to the next."""
    return np.asarray(times[1:] - times[:-1])


def usual(times: pd.DatetimeIndex) -> pd.Timedelta:
    """The most common gap, the shortest of several."""
    import pandas as pd

    found, counts = np.unique(gaps(times), return_counts=True)
    return pd.Timedelta(found[counts.argmax()])


def same_clock(times: pd.DatetimeIndex) -> bool:
    """Does the clock show the same at all of them? Then they are dates."""
    wall = times.tz_localize(None)
    return bool((wall - wall.normalize() == wall[0] - wall[0].normalize()).all())


def steady(times: pd.DatetimeIndex) -> Any:
    """The most common gap as a frequency: days of the calendar, or time that passes."""
    import pandas as pd

    if same_clock(times):
        return pd.offsets.Day(usual(times.tz_localize(None)) // pd.Timedelta(days=1))
    return usual(times)


def frequencies(times: pd.DatetimeIndex) -> Iterator[Any]:
    """What may lead from one time to the next, the plainest first."""
    import pandas as pd

    wall, dates = times.tz_localize(None), same_clock(times)
    if dates and np.median(gaps(wall)) >= pd.Timedelta(days=28):
        n = int(np.bincount(np.diff(wall.year * 12 + wall.month)).argmax()) or 1
        day = 31 if (wall.day == wall.days_in_month).all() else int(wall.day.max())
        yield pd.DateOffset(months=n, day=day)  # or the last day of a month that is shorter
        at = wall[0]
        others = [
            pd.offsets.BMonthEnd(n),
            pd.offsets.BMonthBegin(n),
            pd.offsets.LastWeekOfMonth(n, weekday=at.weekday()),
            pd.offsets.WeekOfMonth(n, week=min(3, (at.day - 1) // 7), weekday=at.weekday()),
        ]
        yield from (f for f in others if f.is_on_offset(at))
    yield steady(times)
    if dates:
        seen = np.bincount(wall.day_of_week, minlength=7)
        if not seen[5:].any():
            yield pd.offsets.BusinessDay()
        if ((seen == 0) | (seen > 2)).all():  # other days of the week, for three weeks or more
            yield pd.offsets.CustomBusinessDay(weekmask=" ".join(d for d, n in zip(DAYS, seen) if n))


def leads(times: pd.DatetimeIndex, frequency: Any) -> np.ndarray:
    """(T - 1,) does a frequency lead from each time to the next?"""
    import pandas as pd

    if isinstance(frequency, pd.Timedelta):
        return np.asarray(times[1:] - times[:-1] == frequency)
    return np.array([a + frequency == b for a, b in itertools.pairwise(times.tz_localize(None))])


def following(end: pd.Timestamp, frequency: Any, count: int) -> pd.DatetimeIndex:
    """The `count` times after `end`.

    Of a date, a clock time that is skipped moves on to the change, and of two it is the first.
    """
    import pandas as pd

    if isinstance(frequency, pd.Timedelta) or end.tz is None:
        return pd.date_range(end, periods=count + 1, freq=frequency)[1:]
    wall = pd.date_range(end.tz_localize(None), periods=count + 1, freq=frequency)[1:]
    return wall.tz_localize(end.tz, ambiguous=np.ones(count, dtype=bool), nonexistent="shift_forward")


def snapped(times: pd.DatetimeIndex) -> pd.DatetimeIndex | None:
    """The steady times that these are near, of a clock that is not exact; None where one is more than a fifth
    of a step off.
    """
    import pandas as pd

    units = [pd.Timedelta(u) for u in ("1D", "1h", "1min", "1s", "1ms")]
    middle = pd.Timedelta(np.median(gaps(times)))
    if middle >= pd.Timedelta(days=28) or (abs(gaps(times) - middle) > 0.2 * middle).any():
        return None
    for unit in units:  # the step is as round as it can be
        step = round((times[-1] - times[0]) / (len(times) - 1) / unit) * unit
        off = times - times[0] - step * np.arange(len(times))
        start = off.sort_values()[len(off) // 2]
        late = abs(off - start).max()
        if late <= 0.2 * step:
            exact = next((u for u in units if u <= 2 * late), pd.Timedelta("1us"))
            return pd.date_range((times[0] + start).round(exact), periods=len(times), freq=step)
    return None


# In words


def span(gap: pd.Timedelta) -> str:
    """'4 hours', in the largest unit that is whole."""
    import pandas as pd

    for unit in ("days", "hours", "minutes", "seconds"):
        count, rest = divmod(gap, pd.Timedelta(**{unit: 1}))
        if count and not rest:
            return f"{count} {unit[: None if count > 1 else -1]}"
    return f"{gap.total_seconds():g} seconds"


def spoken(frequency: Any) -> str:
    """'1 hour', '1 month', '1 business day'.

    Two frequencies that are said alike have steps of the same length.
    """
    import pandas as pd

    if isinstance(frequency, pd.Timedelta):
        return span(frequency)
    if isinstance(frequency, pd.offsets.Day):
        return span(pd.Timedelta(days=frequency.n))
    if isinstance(frequency, pd.offsets.CustomBusinessDay):
        return f"1 day of {frequency.weekmask}"
    if isinstance(frequency, pd.offsets.BusinessDay):
        return "1 business day"
    count, unit = frequency.kwds.get("months", frequency.n), "month"
    for months, longer in ((12, "year"), (3, "quarter")):
        if unit == "month" and count % months == 0:
            count, unit = count // months, longer
    return f"{count} {unit}" + ("s" if count > 1 else "")


def refused(column: Column, order: np.ndarray, times: pd.DatetimeIndex) -> DataError:
    """What is wrong with times that have no frequency: one is there twice, some are missing, or no step is
    like another.
    """
    import pandas as pd

    dates = same_clock(times)
    said = lambda t: str(t)[:10] if dates and t == t.normalize() else str(t)
    found = gaps(times)
    clock = "; if the clock was changed there, write UTC (2004-03-10T18:00:00Z) or offsets (...+01:00)"
    hint = lambda off: clock if times.tz is None and not dates and abs(off) <= pd.Timedelta(hours=2) else ""
    if not found.all():
        i = int(found.argmin()) + 1
        return DataError(f"{column.where(order[i])}: {said(times[i])} is there twice{hint(pd.Timedelta(0))}")
    frequency, good = max(((f, leads(times, f)) for f in frequencies(times)), key=lambda x: x[1].sum())
    i = int(good.argmin())
    here, there, gap = times[i], times[i + 1], pd.Timedelta(found[i])
    text = f"{column.where(order[i + 1])}: {said(there)} comes {span(gap)} after {said(here)}"
    text += f", and the usual step is {spoken(frequency)}"
    between = following(here, frequency, len(times))
    missing = [said(t) for t in between if t < there]
    if missing and there in between:
        gone = ", ".join(missing[:3]) + (f" ... ({len(missing)} in all)" if missing[3:] else "")
        return DataError(
            f"{text}: {gone} {'are' if missing[1:] else 'is'} missing; put in rows with empty values, which "
            f"are filled with the ones before, or cut the series there{hint(gap - usual(times))}"
        )
    if dates and found.min() >= pd.Timedelta(days=28):
        return DataError(f"{text}, always on one day; give each period one date, such as 2004-03")
    return DataError(f"{text} ({good.sum()} of {len(good)} are){hint(gap - usual(times))}")
