"""Dates of series: read as they are written, gone on with by the calendar, and refused where they have gaps
or may mean two things.
"""

import datetime
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qkv.cli.main import main
from qkv.data import dates, series
from qkv.data.text import DataError

PLAIN = (
    "YS",
    "YE",
    "YS-APR",
    "YE-FEB",
    "QS",
    "QE",
    "QS-FEB",
    "MS",
    "ME",
    "2MS",
    "W-SUN",
    "W-WED",
    "D",
    "2D",
    "h",
    "6h",
    "15min",
    "s",
)
LATE = ("B", "BME", "BMS", "WOM-3FRI", "C")  # told from others by some rows more
STARTS = st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dates")


def written(folder, cells, name="date", values=None):
    """A file of a column of times and one of numbers."""
    path = folder / "x.csv"
    values = range(len(cells)) if values is None else values
    path.write_text(f"{name},v\n" + "".join(f'"{c}",{v}\n' for c, v in zip(cells, values)))
    return path


def calendar(start, freq, periods):
    """Dates of pandas; C are business days of a week from Sunday to Thursday."""
    more = {"weekmask": "Sun Mon Tue Wed Thu"} if freq == "C" else {}
    whole = start if freq in ("h", "6h", "15min", "s", "D") else start.date()
    make = pd.bdate_range if freq == "C" else pd.date_range
    return make(pd.Timestamp(whole).floor("s"), periods=periods, freq=freq, **more)


@settings(max_examples=120, deadline=None)
@given(STARTS, st.sampled_from(PLAIN + LATE), st.integers(2, 40), st.integers(1, 40), st.booleans())
def test_dates_go_on_as_those_of_pandas(folder, start, freq, rows, count, turned):
    rows += 26 * (freq in LATE)
    whole = calendar(start, freq, rows + count)
    path = written(folder, whole[:rows][:: -1 if turned else 1], values=range(rows)[:: -1 if turned else 1])
    found = series.read(path)
    assert (found.times == whole[:rows]).all() and (found.values[:, 0] == np.arange(rows)).all()
    assert list(found.after(count)) == list(whole[rows:])
    marks = [(t.month, t.day, t.weekday(), t.hour, t.minute) for t in whole]
    assert found.marks().tolist() == [list(m) for m in marks[:rows]]
    assert found.marks(found.after(count)).tolist() == [list(m) for m in marks[rows:]]
    again = series.read(written(folder, found.written(whole[:rows]) + found.written(found.after(count))))
    assert (again.times == whole).all()  # what is written is read again, as one series


@settings(max_examples=60, deadline=None)
@given(STARTS, st.sampled_from((1, 2, 3, 6, 12)), st.integers(3, 30), st.integers(1, 30))
def test_a_day_of_the_month_stays_where_the_month_has_it(folder, start, months, rows, count):
    first = pd.Timestamp(start.date())
    whole = [first + pd.DateOffset(months=months * i) for i in range(rows + count)]
    ends = all(t.day == t.days_in_month for t in whole[:rows])
    assume(first.day == 31 or not ends)  # from June 30 every quarter: the end of the month
    found = series.read(written(folder, [str(t.date()) for t in whole[:rows]]))
    assert list(found.after(count)) == whole[rows:]


@settings(max_examples=20, deadline=None)
@given(STARTS, st.integers(6, 13))
def test_one_weekend_tells_business_days(folder, start, rows):
    whole = pd.bdate_range(start.date(), periods=rows + 10)
    assert list(series.read(written(folder, whole[:rows])).after(10)) == list(whole[rows:])


def test_after_january_31st_comes_the_last_of_february(folder):
    for year, last in ((2023, 28), (2024, 29)):
        found = series.read(written(folder, [f"{year - 1}-12-31", f"{year}-01-31"]))
        assert found.written(found.after(3)) == [f"{year}-02-{last}", f"{year}-03-31", f"{year}-04-30"]


MONTHLY = {
    "1949-01": "%Y-%m",
    "1949/01": "%Y/%m",
    "01/1949": "%m/%Y",
    "1949M01": "%YM%m",
    "Jan 1949": "%b %Y",
    "Jan-1949": "%b-%Y",
    "January, 1949": "%B, %Y",
    "1949 Jan": "%Y %b",
    "19490101": "%Y%m%d",
    "1949.01.01": "%Y.%m.%d",
    "1 Jan 1949": "%d %b %Y",
    "January 1, 1949": "%B %d, %Y",
    "1949-01-01T00:00": "%Y-%m-%dT%H:%M",
    "1949-01-01 12:00 AM": "%Y-%m-%d %I:%M %p",
}


@settings(max_examples=60, deadline=None)
@given(STARTS, st.sampled_from(sorted(MONTHLY)), st.sampled_from((1, 3, 12)), st.integers(2, 20))
def test_months_are_read_in_any_writing(folder, start, form, months, rows):
    whole = pd.date_range(start.date().replace(day=1), periods=rows, freq=pd.DateOffset(months=months))
    cells = [t.strftime(MONTHLY[form]) for t in whole]
    for way in (str, str.lower, str.upper):
        found = series.read(written(folder, map(way, cells) and [way(c) for c in cells], name="Month"))
        assert list(found.times) == list(whole)
        assert list(found.after(1)) == [whole[-1] + pd.DateOffset(months=months)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1700, 2200), st.integers(2, 20), st.sampled_from(("{y}", "{y}Q1", "{y}-q1", "Q1 {y}")))
def test_years_and_quarters(folder, year, rows, form):
    found = series.read(written(folder, [form.format(y=year + i) for i in range(rows)], name="Year"))
    assert found.written(found.after(2)) == [f"{year + rows}-01-01", f"{year + rows + 1}-01-01"]
    quarters = pd.period_range(f"{year}Q2", periods=rows, freq="Q")
    form = form if "1" in form else "{y}q1"
    cells = [form.replace("1", str(q.quarter)).format(y=q.year) for q in quarters]
    found = series.read(written(folder, cells))
    assert list(found.after(3)) == list(pd.period_range(quarters[-1], periods=4, freq="Q").to_timestamp()[1:])


def test_years_without_a_century_are_the_latest_that_have_been(folder):
    months = [t.strftime("%b-%y") for t in pd.date_range("1949-01-01", periods=144, freq="MS")]
    found = series.read(written(folder, months))
    assert found.written(found.times[:1]) == ["1949-01-01"]
    assert found.written(found.after(1)) == ["1961-01-01"]
    assert "'Jan-49' in 'date' is read as 1949-01" in found.notes[0]
    found = series.read(written(folder, ["Nov-99", "Dec-99", "Jan-00"][::-1]))
    assert found.written(found.after(1)) == ["2000-02-01"]
    for cells in (["Jan-01", "Jan-02", "Jan-03"], ["Jan-05", "Mar-05", "Feb-05"]):  # days, perhaps
        with pytest.raises(DataError, match="row 2: 'Jan-0.' .* may be of several years; write ISO"):
            series.read(written(folder, cells))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(10**8, 4 * 10**9),
    st.sampled_from((1, 60, 900, 3600, 86400)),
    st.integers(2, 20),
    st.sampled_from(["s", "ms", "us", "ns"]),
)
def test_times_since_1970_are_in_utc(folder, start, step, rows, unit):
    scale = 1000 ** ("s", "ms", "us", "ns").index(unit)
    found = series.read(written(folder, [(start + step * i) * scale for i in range(rows)], name="timestamp"))
    whole = pd.to_datetime([start + step * i for i in range(rows + 3)], unit="s", utc=True)
    assert list(found.times) == list(whole[:rows]) and list(found.after(3)) == list(whole[rows:])
    assert re.search("'timestamp' is read as .*seconds since 1970, in UTC", found.notes[0])


CHANGES = (  # a time zone, and a day on which its clock is changed
    ("Europe/Berlin", "2020-03-29"),
    ("Europe/Berlin", "2020-10-25"),
    ("America/New_York", "2021-03-14"),
    ("America/New_York", "2021-11-07"),
    ("Australia/Lord_Howe", "2021-04-04"),
    ("Australia/Sydney", "2019-10-06"),
    ("America/Sao_Paulo", "2017-10-15"),
)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(CHANGES),
    st.integers(13, 60),
    st.sampled_from(("h", "30min")),
    st.integers(1, 60),
    st.booleans(),
)
def test_hours_go_on_across_a_change_of_clock(folder, change, before, freq, count, turned):
    """Whether times have offsets, or are in UTC, or are what the clock showed."""
    zone, day = change
    rows = 2 * before + 40
    start = pd.Timestamp(f"{day} 12:00", tz=zone) - pd.Timedelta(before, "h")
    whole = pd.date_range(start, periods=rows + count, freq=freq)
    way = -1 if turned else 1

    def read(times):
        return series.read(written(folder, [str(t) for t in times[:rows]][::way], values=range(rows)[::way]))

    for found in (read(whole), read(whole.tz_convert("UTC"))):
        assert list(found.times) == list(whole[:rows]) and list(found.after(count)) == list(whole[rows:])
    found = read(whole)
    assert (found.marks(found.after(count))[:, 3] == whole[rows:].hour).all()  # of the clock there
    assert [str(t) for t in found.after(count)] == [str(t) for t in whole[rows:]]
    wall = whole.tz_localize(None)
    naive = read(wall)
    assert list(naive.times) == list(wall[:rows]) and (naive.values[:, 0] == np.arange(rows)).all()
    assert list(naive.after(count)) == list(wall[rows:]) and "the clock changes as in" in naive.notes[0]


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(CHANGES), st.integers(3, 23), st.sampled_from(("D", "MS", "B")), st.integers(30, 60))
def test_days_keep_their_clock_across_its_change(folder, change, hour, freq, rows):
    zone, day = change
    start = pd.Timestamp(day) - pd.Timedelta(days=20) + pd.Timedelta(hours=hour)
    whole = pd.date_range(start, periods=rows + 40, freq=freq).tz_localize(zone)
    found = series.read(written(folder, [str(t) for t in whole[:rows]]))
    assert [str(t) for t in found.after(40)] == [str(t) for t in whole[rows:]]


def test_time_zones_that_differ_about_the_future_are_not_guessed(folder):
    """Casablanca's clock was changed with Berlin's, and changed back in June."""
    whole = pd.date_range("2015-03-27", "2015-04-20", freq="h", tz="Europe/Berlin")
    found = series.read(written(folder, [str(t.tz_localize(None)) for t in whole]))
    later = pd.date_range(whole[-1], periods=241, freq="h").tz_localize(None)[1:]
    assert len(found.ends) > 1 and list(found.after(240)) == list(later)
    with pytest.raises(
        DataError,
        match="the clock of this series changes as in .* which differ within the next 2400 steps; write",
    ):
        found.after(2400)


def test_offsets_of_no_one_zone_are_put_in_utc(folder):
    cells = [
        "2020-01-01T00:00+00:00",
        "2020-01-01T06:30+05:30",
        "2020-01-01T01:00-01:00",
        "2020-01-01T03:00Z",
    ]
    found = series.read(written(folder, cells))
    assert str(found.after(1)[0]) == "2020-01-01 04:00:00+00:00"
    assert "no one time zone; they are put in UTC" in found.notes[0]


@settings(max_examples=80, deadline=None)
@given(STARTS, st.sampled_from(PLAIN + LATE), st.integers(36, 50), st.integers(1, 33), st.integers(1, 2))
def test_a_gap_is_named_by_what_is_missing(folder, start, freq, rows, at, gone):
    whole = calendar(start, freq, rows)
    cells = [str(t) for t in whole]
    path = written(folder, cells[:at] + cells[at + gone :])
    with pytest.raises(DataError) as error:
        series.read(path)
    text = str(error.value)
    assert text.startswith(f"{path}, row {at + 2}: ") and " missing; put in rows with empty values" in text
    dates = freq not in ("h", "6h", "15min", "s")
    for t in whole[at : at + gone]:
        assert (str(t)[:10] if dates and t == t.normalize() else str(t)) in text


def test_a_row_that_is_put_in_empty_is_filled(folder):
    cells = [str(t.date()) for t in pd.bdate_range("2020-12-21", periods=12)]
    found = series.read(written(folder, cells, values=[1, 2, 3, 4, "", 6, 7, 8, 9, 10, 11, 12]))
    assert found.filled == 1 and found.values[4, 0] == 4 and "1 missing values are filled" in found.notes[0]


@settings(max_examples=60, deadline=None)
@given(
    STARTS,
    st.integers(2, 40),
    st.sampled_from(("D", "h", "MS", "W-SUN")),
    st.sampled_from("/.-"),
    st.booleans(),
)
def test_day_and_month_are_told_apart_by_the_column_or_refused(folder, start, rows, freq, sep, day_first):
    whole = pd.date_range(pd.Timestamp(start).floor("h"), periods=rows + 1, freq=freq)
    form = sep.join(("%d", "%m", "%Y") if day_first else ("%m", "%d", "%Y")) + " %H:%M"
    cells = [t.strftime(form) for t in whole[:rows]]
    other = [pd.Timestamp(t.year, t.day, t.month, t.hour) if t.day <= 12 else None for t in whole[:rows]]
    try:
        found = series.read(written(folder, cells))
    except DataError as e:
        assert "may have the day or the month first" in str(e) and None not in other
        return
    assert list(found.times) == list(whole[:rows])
    if None not in other and other != list(whole[:rows]):  # both could be read: the other one has no step
        gaps = {b - a for a, b in zip(sorted(other), sorted(other)[1:])}
        assert len(gaps) > 1


def test_times_that_cannot_be_read_are_named(folder):
    for cells, message in (
        (
            ["10/03/2004", "11/03/2004"],
            "row 2: '10/03/2004' .* may have the day or the month first, .* write ISO dates",
        ),
        (
            ["13/03/2004", "03/14/2004"],
            "row 2: '13/03/2004' .* has the day first, '03/14/2004' the month",
        ),
        (["soon", "later"], "row 2: 'soon' in the column 'date' is no time that can be read. ISO dates"),
        (["", "2004-01-01"], "row 2: '' in the column 'date' is no time"),
        (["2004-01-01", "2004-02"], "row 3: '2004-02' .* is not written as '2004-01-01' of row 2 is"),
        (["2004-02-28", "2004-02-30"], "row 3: '2004-02-30' .* is no time of the calendar"),
        (
            ["2004-02-28 13:00 PM", "2004-02-28 14:00 PM"],
            "row 2: '2004-02-28 13:00 PM' .* is no time of the calendar",
        ),
        (["2004-W54", "2004-W53"], "row 2: '2004-W54' .* is no week of the calendar"),
        (
            ["2004-01-01T00:00Z", "2004-01-01T01:00"],
            "row 3: '2004-01-01T01:00' .* has no time zone, and '2004-01-01T00:00Z' has",
        ),
        (
            ["2004-01-02", "2004-02-03", "2004-03-02"],
            "row 4: .* usual step is 1 month, always on one day; give each period one",
        ),
        (["2004-01-02", "2004-02-02", "2004-02-02"], "row 4: 2004-02-02 is there twice$"),
        (
            ["2004-01-01 01:00", "2004-01-01 02:00", "2004-01-01 02:00"],
            "row 4: .* twice; if the clock was changed there, .* UTC",
        ),
    ):
        with pytest.raises(DataError, match=message):
            series.read(written(folder, cells))


STEPS = {10: "10 seconds", 60: "1 minute", 600: "10 minutes", 3600: "1 hour", 86400: "1 day"}


@settings(max_examples=30, deadline=None)
@given(STARTS, st.sampled_from(sorted(STEPS)), st.integers(0, 2**32), st.integers(20, 200))
def test_a_clock_that_is_not_exact_has_its_step_all_the_same(folder, start, step, seed, rows):
    spoken = STEPS[step]
    grid = pd.date_range(pd.Timestamp(start).floor("s"), periods=rows + 5, freq=pd.Timedelta(step, "s"))
    off = np.random.default_rng(seed).integers(-step * 50, step * 50, rows)  # up to a twentieth
    assume(len(set(off)) > 1)
    found = series.read(written(folder, [str(t + pd.Timedelta(int(o), "ms")) for t, o in zip(grid, off)]))
    late = pd.Timedelta(step * 50, "ms")
    assert (abs(found.after(5) - grid[rows:]) <= 3 * late).all() and series.spoken(found.frequency) == spoken
    assert "off a step of" in found.notes[0] and found.times[3] == grid[3] + pd.Timedelta(int(off[3]), "ms")


def test_columns_are_named_or_numbered_and_told_apart(folder):
    path = folder / "wide.csv"
    path.write_text("a,date,2,b,b\n" + "".join(f"{i},2020-01-{i:02},{2 * i},0,1\n" for i in range(1, 9)))
    assert series.read(path, ["a"]).names == ("a",) and series.read(path, [1]).names == ("a",)
    assert series.read(path, [2]).values[0, 0] == 2  # by its name, before its number
    for columns, message in (
        (["b"], "has several columns called 'b'"),
        (["date"], "the column 'date' holds the times; choose another with label=NAME"),
        ([6], "has no column '6'; it has a, date, 2, b, b"),
    ):
        with pytest.raises(DataError, match=message):
            series.read(path, columns)
    path.write_text("date\n2020-01-01\n2020-01-02\n")
    with pytest.raises(DataError, match="has a column of times \\('date'\\) and none of values"):
        series.read(path)
    path.write_bytes("date,Wärme\n2020-01-01,1\n2020-01-02,2\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read: .*; write it as UTF-8, or give errors=replace"):
        series.read(path)
    assert series.read(path, errors="replace").names == ("W\ufffdrme",)
    path.write_bytes(b"date,v\n\n2020-01-01,1\n2020-01-02,x\n")
    with pytest.raises(DataError, match="row 4: could not convert 'x' in the column 'v' to a finite number"):
        series.read(path)
    path.write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(DataError, match="cannot be read: "):
        series.read(path)
    path.write_bytes(b"date,v\n2020-01-01,1\r2\n")
    with pytest.raises(DataError, match="cannot be read: "):
        series.read(path)


def test_hours_of_two_years(shared):
    found = series.read(shared / "timeseries_ett" / "ETTh1.csv.gz", ["OT"])
    assert found.values.shape == (17420, 1) and series.spoken(found.frequency) == "1 hour" and not found.notes
    assert found.written(found.after(1)) == ["2018-06-26 20:00:00"]


def test_pandas_waits_until_a_series_is_read():
    code = "import sys, qkv.cli.main, qkv.cli.forecast, qkv.data.series; assert 'pandas' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


KINDS = {
    "monthly": pd.date_range("1949-01-31", periods=156, freq="ME"),
    "quarterly": pd.date_range("1960-01-01", periods=96, freq="QS"),
    "yearly": pd.date_range("1900-01-01", periods=92, freq="YS"),
    "business days": pd.bdate_range("2020-01-01", periods=90),
    "hours with offsets": pd.date_range("2020-10-22", periods=110, freq="h", tz="Europe/Berlin"),
    "hours of a clock": pd.date_range("2020-10-22", periods=110, freq="h", tz="CET").tz_localize(None),
    "hours into summer": pd.date_range("2021-03-25", periods=98, freq="h", tz="America/Los_Angeles"),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_every_row_of_a_forecast_has_its_date(name, tmp_path, capsys):
    """From the command line, two horizons and a part of a third ahead."""
    whole, more = KINDS[name], 14
    rows = len(whole) - more
    forms = {"monthly": "{0:%Y-%m-%d}", "quarterly": "{0.year}Q{0.quarter}", "yearly": "{0.year}"}
    cells = [forms.get(name, "{0}").format(t) for t in whole]
    path = written(tmp_path, cells[:rows], values=[f"{10 + np.sin(i):.4f}" for i in range(rows)])
    train = ["context=8", "horizon=6", f"data={path}", "threads=1", "precision=exact", "steps=2", "batch=8"]
    assert main(["train", "linear-forecaster", *train]) == 0
    out = [f"out={tmp_path / 'next.csv'}", f"picture={tmp_path / 'next.png'}"]
    assert main(["forecast", "last", f"steps={more}", *out]) == 0
    lines = [line.split(",") for line in (tmp_path / "next.csv").read_text().splitlines()]
    wanted = [str(t)[:10] if name in (*forms, "business days") else str(t) for t in whole[rows:]]
    assert [line[0] for line in lines[1:]] == wanted and lines[0] == ["date", "v", "v low", "v high"]
    shown = capsys.readouterr().out
    assert all(date in shown for date in wanted[:12]) and "low, high: eight of ten errors on" in shown


@pytest.mark.parametrize(("zone", "day"), [("Europe/Berlin", "2024-10-27 02:30"), ("America/New_York", "2024-11-03 01:30")])
def test_of_a_clock_time_that_comes_twice_the_first_is_taken(zone, day):
    """A date a day, at a time of day that the night of the change has twice."""
    last = pd.Timestamp(day, tz=None) - pd.DateOffset(days=1)
    found = dates.following(last.tz_localize(zone), pd.DateOffset(days=1), 3)
    assert found[0] == pd.Timestamp(day).tz_localize(zone, ambiguous=True)
    assert [t.tz_localize(None) for t in found] == [pd.Timestamp(day) + pd.DateOffset(days=i) for i in range(3)]
