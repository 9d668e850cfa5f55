"""The task of forecasting: windows, scales, pieces beyond the horizon, and the band of the errors."""

import datetime
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qkv import models, objectives, pictures
from qkv.cli.main import main
from qkv.data import Data, series
from qkv.data.text import DataError

Forecast = objectives.TASKS["forecast"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("forecasts")


def written(path, values, start="2020-01-01", freq="h"):
    """A CSV file of columns (T, C) called a, b ..."""
    values = np.asarray(values, dtype=float).reshape(len(values), -1)
    names = "abcdefghijklm"[: values.shape[1]]
    times = pd.date_range(start, periods=len(values), freq=freq)
    rows = [",".join([str(t), *map(repr, v)]) for t, v in zip(times, values.tolist())]
    path.write_text("\n".join([",".join(["date", *names]), *rows]) + "\n")
    return path


def linear(context, horizon, columns=1):
    """A linear model whose weights are drawn."""
    torch.manual_seed(0)
    cfg = models.preset("linear-forecaster", context=context, horizon=horizon, values=columns, said=columns)
    model = models.build(cfg).eval()
    torch.nn.init.normal_(model.weigh.weight, std=context**-0.5)
    return cfg, model


def walk(rows, columns=1, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).cumsum(0) * 3 + 50


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 120), st.integers(1, 12), st.integers(1, 8), st.integers(0, 130), st.integers(1, 9))
def test_each_step_is_foretold_by_every_window_that_holds_it(folder, length, context, horizon, rows, stride):
    """The values say which step they are: count them."""
    path = written(folder / "x.csv", np.arange(length))
    used = min(rows, length) if rows else length
    cuts = {
        "train": (0, int(0.6 * used)),
        "valid": (int(0.6 * used), int(0.8 * used)),
        "test": (int(0.8 * used), used),
    }
    assume(cuts["train"][1] >= context + horizon and min(b - a for a, b in cuts.values()) >= horizon)
    cfg, _ = linear(context, horizon)
    task = Forecast(cfg, rows=rows, stride=stride)
    for part, (first, last) in cuts.items():
        (example,) = Forecast.read(Data(source=str(path)), str(path), part)
        mean, std = task.scale(example.more["own"])
        steps = lambda x: np.rint(x.numpy()[:, 0] * std + mean).astype(int).tolist()
        for training in (False, True):
            items = task.encode([example], training=training)
            futures = [steps(i["future"]) for i in items]
            assert all(steps(i["past"]) == list(range(f[0] - context, f[0])) for i, f in zip(items, futures))
            for i, f in zip(items, futures):
                assert i["marks"][:, 3].tolist() == [s % 24 for s in range(f[0] - context, f[-1] + 1)]
            held = [s for f in futures for s in f]
            every = [m for m in range(used) if m >= max(first, context) and m + horizon <= last]
            if training:
                every = [m for m in every if (every[-1] - m) % stride == 0]
            wanted = [s for m in every for s in range(m, m + horizon)]
            assert sorted(held) == sorted(wanted)
            assert not training or held[-1] == last - 1  # the newest steps are learnt, whatever the stride
    for train in (range(0, int(0.6 * used)),):
        assert abs(mean[0] - np.mean(train)) < 1e-9 and abs(std[0] - np.std(train)) < 1e-9


def test_a_file_that_is_held_out_is_scored_whole_and_scaled_as_the_run(folder):
    own = written(folder / "own.csv", np.c_[walk(60), walk(60, seed=1)])
    later = folder / "later.csv"
    other = np.c_[walk(30, seed=2) + 400, walk(30, seed=3)]
    lines = [line.split(",") for line in written(later, other).read_text().splitlines()]
    later.write_text("\n".join(",".join([b, date, a]) for date, a, b in lines))  # columns in another order
    cfg, _ = linear(8, 4, 2)
    task, data = Forecast(cfg, rows=20), Data(source=str(own), valid=str(later))
    items = task.encode(Forecast.read(data, str(later), "valid"))
    train, found = series.read(own).values[:12], series.read(later, ["a", "b"]).values
    scaled = (found - train.mean(0)) / train.std(0)
    assert [i["where"] for i in items] == [f"{later}, step {m}" for m in range(8, 27)]
    np.testing.assert_allclose(torch.stack([i["future"][0] for i in items]), scaled[8:27], rtol=1e-5)
    assert Forecast.read(data, str(own), "test")[0].label == "test"
    written(later, walk(30), freq="D")
    with pytest.raises(DataError, match="csv has a step of 1 day, and the run's own series one of 1 hour"):
        Forecast.read(Data(source=str(own), valid=str(later), label="a"), str(later), "valid")


def test_what_comes_after_the_training_part_does_not_scale_it(folder):
    cfg, _ = linear(4, 2)
    values = walk(50)
    seen = []
    for more in (0, 1000):
        values[30:] += more
        path = str(written(folder / "x.csv", values))
        seen.append(Forecast(cfg).encode(Forecast.read(Data(source=path), path, "train")))
    assert all(a["past"].equal(b["past"]) and a["future"].equal(b["future"]) for a, b in zip(*seen))


def test_arguments_of_the_task_are_whole_numbers():
    cfg, _ = linear(4, 2)
    for text, message in (
        ("forecast(rows=-1)", "rows=-1: must be a whole number of at least 0"),
        ("forecast(rows=2.5)", "rows=2.5: must be a whole number"),
        ("forecast(stride=0)", "stride=0: must be a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            objectives.make_task(text, cfg, None, 0)


@pytest.mark.parametrize("name", ["linear-forecaster", "informer-nano"])
def test_steps_beyond_the_horizon_are_read_as_if_they_had_come_true(name, folder):
    """Foretelling 2 1/2 horizons is foretelling one, writing it down, and foretelling from there; monthly, so
    that marks differ.
    """
    own = series.read(written(folder / "own.csv", walk(60, 2), start="2000-01-31", freq="ME"))
    cfg, model = linear(12, 4, 2)
    if name == "informer-nano":
        torch.manual_seed(0)
        small = {"dim": 16, "heads": 2, "hidden": 32, "layers": 2, "decoder_layers": 2, "mixed": True, "kernel": "softmax", "known": 6}
        cfg = models.preset(name, context=12, horizon=4, values=2, said=2, **small)
        model = models.build(cfg).eval()
    task = Forecast(cfg)
    far = task.forecast(model, own, own, 10)
    for count in (1, 4, 7):
        np.testing.assert_array_equal(task.forecast(model, own, own, count), far[:count])
    values, pieces = own.values, []
    for _ in range(3):
        longer = series.read(written(folder / "longer.csv", values, start="2000-01-31", freq="ME"))
        pieces.append(task.forecast(model, own, longer, 4))
        values = np.concatenate([values, pieces[-1]])
    np.testing.assert_allclose(np.concatenate(pieces)[:10], far, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 4, 9, 30])
def test_the_band_is_that_of_the_errors_of_each_step(count, folder):
    """From every step of the held-out part, horizon by horizon, as long as the part lasts: one quantile a
    step.
    """
    S, H, rows = 8, 4, 90
    path = str(written(folder / "x.csv", walk(rows, 2)))
    cfg, model = linear(S, H, 2)
    task, (held,) = Forecast(cfg), Forecast.read(Data(source=path), path, "valid")
    low, high, windows, steps = task.band(model, held, count)
    values = held.more["series"].values
    mean, std = values[:54].mean(0), values[:54].std(0)
    weight, bias = (
        model.weigh.weight.detach().numpy().astype(float),
        model.weigh.bias.detach().numpy().astype(float),
    )
    wrong = {}
    for mid in range(54, 72 - H + 1):
        past = (values[mid - S : mid] - mean) / std
        while len(past) < S + count:
            past = np.concatenate([past, weight @ (past[-S:] - past[-1]) + bias[:, None] + past[-1]])
        for i in range(min(count, 72 - mid)):
            wrong.setdefault(i, []).append(values[mid + i] - (past[S + i] * std + mean))
    assert windows == 15 and steps == min(count, 18) == len(wrong) and low.shape == high.shape == (count, 2)
    for i in range(count):
        errors = wrong[min(i, 17)]
        np.testing.assert_allclose(low[i], np.quantile(errors, 0.1, axis=0), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(high[i], np.quantile(errors, 0.9, axis=0), rtol=1e-3, atol=1e-3)
    assert count < 9 or (high - low)[8].sum() > 1.2 * (high - low)[3].sum()  # it widens beyond the horizon


def test_the_share_that_is_foretold_is_that_of_scikit_learn_and_finite():
    from sklearn.metrics import r2_score

    cfg, _ = linear(4, 3)
    task = Forecast(cfg)
    wanted, said = torch.randn(5, 3, 1), torch.randn(5, 3, 1)
    held = task.scores([{"wanted": w} for w in wanted], list(said))
    assert abs(held["explained"] - r2_score(wanted.flatten(), said.flatten())) < 1e-6
    assert task.scores([{"wanted": w} for w in torch.zeros(5, 3, 1)], list(said))["explained"] == 0


@pytest.mark.parametrize("embed", ["fixed", "learned", "linear"])
def test_calendars_of_every_kind_read_the_marks(embed):
    small = {"dim": 16, "heads": 2, "hidden": 32, "marks": 5, "known": 2}
    cfg = models.preset("informer-nano", context=6, horizon=3, values=1, said=1, embed=embed, **small)
    times = pd.date_range("2020-02-27 22:45", periods=9, freq="15min")
    marks = np.stack([times.month, times.day, times.day_of_week, times.hour, times.minute], 1)
    item = {
        "past": torch.randn(6, 1),
        "future": torch.zeros(3, 1),
        "marks": torch.from_numpy(marks.astype(int)),
    }
    task, model = Forecast(cfg), models.build(cfg).eval()
    (said,) = task.predict(model, [item])
    later = lambda minutes: item | {"marks": (item["marks"] + torch.tensor([0, 0, 0, 0, minutes])) % 60}
    (soon,), (quarter,) = (task.predict(model, [later(m)]) for m in (5, 15))
    assert said.shape == (3, 1) and not said.equal(quarter) and soon.equal(said) == (embed != "linear")


def test_the_fan_has_the_time_zone_of_its_series_and_shows_a_single_step(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(pictures, "kept", lambda figure, path: kept.append(figure) or path)
    whole = pd.date_range("2020-10-24 12:00", periods=21, freq="h", tz="Europe/Berlin").to_pydatetime()
    past = np.arange(20.0)[:, None]
    said = past[:1]
    pictures.fan(tmp_path / "x.png", whole[:20], past, whole[20:], said, said - 1, said + 1, ["a"])
    (axes,) = kept[0].axes
    zone = datetime.timedelta(hours=2)
    assert axes.xaxis.get_major_formatter()._tz.utcoffset(datetime.datetime(2020, 10, 24)) == zone
    so_far, foretold = axes.lines
    assert len(foretold.get_xdata()) == 2 and foretold.get_ydata().tolist() == [19, 0]
    assert foretold.get_xdata()[0] == so_far.get_xdata()[-1]


def test_another_file_is_gone_on_with_if_its_step_is_the_same(tmp_path, capsys):
    own = written(tmp_path / "own.csv", walk(80, 2), start="2000-01-01", freq="MS")
    train = [
        "context=8",
        "horizon=6",
        f"data={own}",
        "label=2",
        "threads=1",
        "precision=exact",
        "steps=2",
        "batch=8",
    ]
    assert main(["train", "linear-forecaster", *train]) == 0
    newer = written(tmp_path / "newer.csv", walk(20, 2), start="2019-05-31", freq="ME")
    out = tmp_path / "next.csv"
    assert main(["forecast", "last", str(newer), "steps=3", f"out={out}"]) == 0
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert lines[0] == ["date", "a", "a low", "a high"]  # label=2 is the second column
    assert [line[0] for line in lines[1:]] == ["2021-01-31", "2021-02-28", "2021-03-31"]
    capsys.readouterr()
    daily = written(tmp_path / "daily.csv", walk(20, 2), freq="D")
    assert main(["forecast", "last", str(daily)]) == 2
    assert "daily.csv has a step of 1 day, and the run's own series one of 1 month" in capsys.readouterr().err
    text = daily.read_text().splitlines()
    daily.write_text("\n".join(text[:5] + text[6:]))
    assert main(["forecast", "last", str(daily)]) == 2 and "2020-01-05 is missing" in capsys.readouterr().err
    values = walk(80, 2)
    values[3, 0] = np.nan
    written(own, values, start="2000-01-01", freq="MS")
    assert main(["train", "linear-forecaster", *train]) == 0
    assert "note: " in (said := capsys.readouterr().err) and "own.csv: 1 missing values are filled" in said


def test_another_file_is_scored_in_the_scale_of_the_run(tmp_path, capsys):
    """Three times the series is three times as far off, in the run's own deviations."""
    start = datetime.date(2020, 1, 1)
    values = [10 + (i % 7) + 0.3 * ((i * 7919) % 11) for i in range(300)]
    for name, factor in (("own", 1), ("same", 1), ("wide", 3)):
        rows = "".join(f"{start + datetime.timedelta(days=i)},{factor * v:.3f}\n" for i, v in enumerate(values))
        (tmp_path / f"{name}.csv").write_text("date,sales\n" + rows)
    words = ["context=14", "horizon=7", "steps=3", "--quiet"]
    assert main(["train", "linear-forecaster", f"data={tmp_path / 'own.csv'}", *words]) == 0
    found = {}
    for name in ("same", "wide"):
        capsys.readouterr()
        assert main(["eval", "last", str(tmp_path / f"{name}.csv")]) == 0
        found[name] = float(re.search(r"mse\s+([\d.]+)", capsys.readouterr().out)[1])
    assert found["wide"] > 6 * found["same"]


def test_the_example_that_is_shown_names_dates_and_columns(tmp_path):
    (tmp_path / "m.csv").write_text("month,sales,cost\n" + "".join(f"20{10 + i // 12}-{1 + i % 12:02},{i},{2.5 * i}\n" for i in range(40)))
    kind = objectives.task_of("forecast")
    (example,) = kind.read(Data(source=str(tmp_path / "m.csv")), str(tmp_path / "m.csv"), "train")
    assert kind.described(example).endswith("m.csv: 2010-01-01: sales=0, cost=0; a step of 1 month, 40 of them to 2013-04-01")
