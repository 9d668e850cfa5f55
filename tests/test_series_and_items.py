"""Series foretold, items recommended, images drawn: from files to answers, from the command line."""

import datetime
import json
import math

import numpy as np
import pytest
import torch

from qkv import models, objectives
from qkv.cli.main import main
from qkv.data import series
from qkv.data import tokenizer as tokenizers
from qkv.data.text import DataError
from qkv.training import folder


def waves(path, rows=400, columns=("a", "b")):
    """Hourly rows: a daily wave, and one of another phase."""
    start = datetime.datetime(2020, 1, 1)
    lines = ["date," + ",".join(columns)]
    for i in range(rows):
        values = [f"{10 + 3 * math.sin(2 * math.pi * i / 24 + k) + 0.05 * ((i * 7919) % 13):.4f}" for k in range(len(columns))]
        lines.append(f"{start + datetime.timedelta(hours=i)}," + ",".join(values))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_series_is_read_in_order_with_its_marks(tmp_path):
    import gzip

    path = waves(tmp_path / "x.csv", 30)
    whole = series.read(path)
    assert whole.values.shape == (30, 2) and whole.names == ("a", "b") and whole.frequency == datetime.timedelta(hours=1)
    assert whole.marks()[25].tolist() == [1, 2, 3, 1, 0]  # January 2nd 2020, a Thursday, one o'clock
    assert list(whole.after(1)) == [datetime.datetime(2020, 1, 2, 6)]
    lines = path.read_text().splitlines()
    (tmp_path / "mixed.csv").write_text("\n".join([lines[0], *lines[:0:-1]]))
    assert (series.read(tmp_path / "mixed.csv").values == whole.values).all()
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert (series.read(tmp_path / "x.csv.gz", ["b"]).values[:, 0] == whole.values[:, 1]).all()
    rows = [line.split(",") for line in lines]
    rows[1][1], rows[5][1], rows[6][1] = "", "NaN", "?"
    (tmp_path / "holes.csv").write_text("\n".join(",".join(r) for r in rows))
    filled = series.read(tmp_path / "holes.csv")
    assert filled.filled == 3 and filled.values[0, 0] == whole.values[1, 0] and (filled.values[4:6, 0] == whole.values[3, 0]).all()


def test_faults_of_a_series_are_named(tmp_path):
    path = waves(tmp_path / "x.csv", 30)
    lines = path.read_text().splitlines()
    change = {
        "gap": ([*lines[:9], *lines[12:]], "row 10: .* comes 4 hours after"),
        "twice": ([*lines[:9], lines[8], *lines[9:]], "is there twice"),
        "words": ([*lines[:9], lines[9].rsplit(",", 1)[0] + ",high", *lines[10:]], "row 10: could not convert"),
        "ragged": ([*lines[:9], lines[9] + ",1", *lines[10:]], "row 10: has 4 columns, the header 3"),
        "no times": (["day,a", "1,2", "2,3"], "has no column of times"),
        "empty": (["date,a"], "has 0 rows"),
        "nothing": ([lines[0], *(f"{x.split(',')[0]},,1" for x in lines[1:])], "the column 'a' holds no number"),
    }
    for name, (rows, message) in change.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
        with pytest.raises(DataError, match=message):
            series.read(tmp_path / f"{name}.csv")
    with pytest.raises(DataError, match="has no column 'z'"):
        series.read(path, ["z"])
    with pytest.raises(DataError, match="is no file here"):
        series.read(tmp_path / "gone.csv")


def test_windows_do_not_look_ahead_and_scales_are_those_of_training(tmp_path):
    task = objectives.TASKS["forecast"](models.preset("linear-forecaster", context=12, horizon=4, values=1, said=1))
    found = series.read(waves(tmp_path / "x.csv", 100), ["a"])
    parts = {p: task.encode(objectives.TASKS["forecast"].read(_data(label="a"), tmp_path / "x.csv", p)) for p in ("train", "valid", "test")}
    assert [len(x) for x in parts.values()] == [60 - 16 + 1, 20 - 4 + 1, 20 - 4 + 1]
    train = found.values[:60, 0]
    scaled = (found.values[:, 0] - train.mean()) / train.std()
    first = parts["valid"][0]
    np.testing.assert_allclose(first["future"][:, 0], scaled[60:64], atol=1e-5)
    np.testing.assert_allclose(first["past"][:, 0], scaled[48:60], atol=1e-5)
    np.testing.assert_allclose(parts["test"][-1]["future"][:, 0], scaled[96:], atol=1e-5)
    said = [i["future"] + 0.5 for i in parts["test"]]
    held = task.scores(parts["test"], said)
    assert abs(held["mse"] - 0.25) < 1e-6 and abs(held["mae"] - 0.5) < 1e-6
    informer = objectives.TASKS["forecast"](models.preset("informer-nano", context=12, known=6, horizon=4, values=1, said=1))
    batch = informer.pairs(parts["valid"][:2], None)
    assert (batch.inputs["x_dec"][:, 6:] == 0).all() and batch.inputs["x_dec"][:, :6].equal(batch.inputs["x_enc"][:, 6:])
    assert batch.inputs["x_mark_dec"].shape == (2, 10, 4)
    constant = models.preset("linear-forecaster", context=12, horizon=4)
    (tmp_path / "flat.csv").write_text("\n".join(["date,a", *(f"2020-01-{1 + i // 24:02d} {i % 24:02d}:00,5" for i in range(100))]))
    rows = objectives.TASKS["forecast"](constant).encode(objectives.TASKS["forecast"].read(_data(), tmp_path / "flat.csv", "train"))
    assert all((r["past"] == 0).all() for r in rows)
    with pytest.raises(DataError, match="its valid part has .* steps; a window reads context=96"):
        big = objectives.TASKS["forecast"](models.preset("linear-forecaster"), rows=60)
        big.encode(objectives.TASKS["forecast"].read(_data(), tmp_path / "x.csv", "valid"))


def _data(**more):
    from qkv.data import Data

    return Data(**more)


@pytest.mark.parametrize("name", ["linear-forecaster", "informer-nano"])
def test_a_series_is_learnt_and_foretold(name, tmp_path, capsys):
    path = waves(tmp_path / "x.csv")
    small = ("context=24", "horizon=6", f"data={path}", "threads=1", "precision=exact", "epochs=14", "warmup=5")
    more = (
        ("known=12", "dim=16", "layers=2", "heads=2", "hidden=32", "dropout=0", "ffn=plain(gelu)", "lr=1e-2")
        if name == "informer-nano"
        else ("lr=1e-2",)
    )
    assert main(["train", name, *small, *more]) == 0
    run = folder.find("last")
    held = [m for m in folder.read_metrics(run / "metrics.jsonl") if "valid_mse" in m]
    assert held[-1]["valid_mse"] < 0.3 * held[0]["valid_mse"] and held[-1]["valid_explained"] > 0.5
    capsys.readouterr()
    assert main(["eval", str(run), "part=test"]) == 0 and "mse" in capsys.readouterr().out
    assert main(["forecast", str(run), f"out={tmp_path / 'next.csv'}", f"picture={tmp_path / 'next.png'}"]) == 0
    rows = (tmp_path / "next.csv").read_text().splitlines()
    assert rows[0] == "date,a,a low,a high,b,b low,b high" and rows[1].startswith("2020-01-17 16:00:00,") and len(rows) == 7
    for row in rows[1:]:
        a, low, high = map(float, row.split(",")[1:4])
        assert low <= high and abs(a - 10) < 5
    assert main(["forecast", str(run), "steps=10", f"out={tmp_path / 'far.csv'}"]) == 0
    far = [line.split(",") for line in (tmp_path / "far.csv").read_text().splitlines()]
    assert (
        len(far) == 11
        and far[10][0] == "2020-01-18 01:00:00"
        and all(abs(float(a) - float(b)) < 1e-3 for a, b in zip(far[6][1:2], rows[6].split(",")[1:2]))
    )
    assert all(abs(float(r[1]) - 10) < 5 for r in far[1:])
    assert main(["forecast", str(run), "steps=0"]) == 2 and "steps=0" in capsys.readouterr().err
    waves(tmp_path / "short.csv", 9)
    assert main(["forecast", str(run), str(tmp_path / "short.csv")]) == 2 and "has 9 steps; the model reads 24" in capsys.readouterr().err


def taken(path, users=90, items=24, length=12):
    """Every user takes items in a circle."""
    lines = [(step, f"u{u} i{(u + step) % items}") for u in range(users) for step in range(length - u % 7)]
    path.write_text("\n".join(x for _, x in sorted(lines, key=lambda p: p[0])) + "\nu_once i3\n")
    return path


@pytest.mark.parametrize("name", ["bert4rec-nano", "gru4rec-nano"])
def test_the_next_item_is_learnt_and_ranked(name, tmp_path, capsys):
    more = (
        ("heads=2", "hidden=64", "attn_dropout=0", "steps=300", "task=recommend(rate=0.2, last=1)")
        if name == "bert4rec-nano"
        else ("steps=60",)
    )
    words = ["train", name, *more, "dim=32", "layers=1", "dropout=0", "length=16", f"data={taken(tmp_path / 'x.txt')}", "batch=32", "lr=1e-2", "warmup=5", "threads=1",
             "eval_every=50", "weight_decay=0"]  # fmt: skip
    assert main(words) == 0
    run = folder.find("last")
    held = [m for m in folder.read_metrics(run / "metrics.jsonl") if "valid_ndcg10" in m]
    assert held[-1]["valid_ndcg10"] > 0.6 > held[0]["valid_ndcg10"] + 0.2 and held[-1]["valid_ndcg10"] > held[-1]["valid_pop_ndcg10"]
    capsys.readouterr()
    assert main(["eval", str(run), "part=test"]) == 0 and "ndcg10" in capsys.readouterr().out
    assert main(["recommend", str(run), "i3", "i4", "i5", "top=3"]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[0][2] == "i6" and float(said[0][0]) > float(said[1][0]) and len(said) == 3 and not {"i3", "i4", "i5"} & {s[2] for s in said}
    assert main(["recommend", str(run), "user=u_once", "top=2"]) == 0 and "has taken: i3" in capsys.readouterr().out  # with one item
    for words, message in (
        (["i999"], "item i999 was not seen in training"),
        (["user=nobody"], "there is no such user"),
        ([], "name a run, and either"),
        (["i3", "top=0"], "top=0"),
    ):
        assert main(["recommend", str(run), *words]) == 2 and message in capsys.readouterr().err
    (tmp_path / "bad.txt").write_text("u1 i1\nalone\n")
    assert main(["train", name, f"data={tmp_path / 'bad.txt'}"]) == 2 and "row 2: 'alone' is no user and item" in capsys.readouterr().err
    (tmp_path / "few.txt").write_text("u1 i1\nu1 i2\n")
    assert main(["train", name, f"data={tmp_path / 'few.txt'}"]) == 2 and "no user has three items" in capsys.readouterr().err


def test_ranks_leave_out_what_was_taken():
    tokenizer = tokenizers.train("items", ["a b c d e f"], None)
    cfg = models.preset("gru4rec-nano", vocab=len(tokenizer), unsaid=1)
    task = objectives.make_task("recommend", cfg, tokenizer, 10)
    from qkv.data.examples import Example

    task.encode([Example("a b c"), Example("a b"), Example("a d e f")], training=True)
    items = task.encode([Example("a b", label="d"), Example("e", label="gone")])
    assert len(items) == 1  # what nobody took in training cannot be named

    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask, at):
            order = ["a", "b", "c", "d", "e", "f"]  # from likely to unlikely
            row = torch.zeros(len(tokenizer) - 1)
            for n, w in enumerate(order):
                row[tokenizer.encode(w)[0]] = 10.0 - n
            return {"logits": row[None].repeat(len(at), 1)}

    ((best, rank, popular),) = task.predict(Fixed(), items, top=3)
    assert best == ["c", "d", "e"] and rank == 1  # c is before d; a and b were taken
    assert popular == 1  # c, d, e and f were taken once each, and c was there first
    held = task.scores(items * 2, [(best, 1, 0), (best, 12, 0)])
    assert held["hr10"] == 0.5 and abs(held["ndcg10"] - 0.5 / math.log2(3)) < 1e-6
    rng = np.random.default_rng(0)
    mask = len(tokenizer) - 1
    cloze = objectives.make_task(
        "recommend(rate=0.3, last=2)", models.preset("bert4rec-nano", vocab=len(tokenizer), output="items"), tokenizer, 10
    )
    rows = cloze.encode([Example("a b c d"), Example("e f")], training=True)
    for _ in range(20):
        batch = cloze.pairs(rows, rng)
        flat = batch.inputs["input_ids"].flatten()
        assert (flat[batch.inputs["at"]] == mask).all() and (flat == mask).sum() == len(batch.labels) >= 2
        assert not (batch.labels == 0).any()


def test_images_are_drawn_by_a_game(tmp_path, capsys):
    """One optimiser trains both sides: each loss reaches its own part alone."""
    from PIL import Image

    rows = ["file,name"]
    for i, (name, colour) in enumerate(
        {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}.items()
    ):
        for k in range(6):
            Image.new("RGB", (16, 16), tuple(max(0, c - 5 * k) for c in colour)).save(tmp_path / f"{i}{k}.png")
            rows.append(f"{i}{k}.png,{name} {'abcdef'[k]}")
    (tmp_path / "names.csv").write_text("\n".join(rows))
    cfg = models.preset("drawer-nano", image=16, width=8, noise=4, vocab=40)
    model = models.build(cfg)
    inputs = {"pixel_values": torch.randn(3, 3, 16, 16), "input_ids": torch.randint(7, 40, (3, 4)), "attention_mask": torch.ones(3, 4, dtype=torch.long),
              "noise": torch.randn(3, 4), "spread": torch.randn(3, 4)}  # fmt: skip
    reached = {"judge": {"judges"}, "match": {"matcher", "words"}, "draw": {"generator"}}
    for name, parts in reached.items():
        model.zero_grad()
        model.losses(**inputs)[name].backward()
        got = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert got == parts, name
    words = ["train", "drawer-nano", "image=16", "width=8", "noise=4", "words.dim=16", "words.heads=2", "words.hidden=24", f"data={tmp_path / 'names.csv'}", "tokenizer=char",
             "holdout=0.3", "steps=6", "batch=8", "threads=1"]  # fmt: skip
    assert main(words) == 0
    run = folder.find("last")
    assert main(["eval", str(run), f"picture={tmp_path / 'd.png'}", f"out={tmp_path / 'o.jsonl'}"]) == 0
    assert (tmp_path / "d.png").stat().st_size > 3000 and "at5" in capsys.readouterr().out
    assert json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])["wanted"]
    for fields, message in (({"image": 24}, "a power of 2"), ({"width": 0}, "width=0")):
        with pytest.raises(ValueError, match=message):
            models.preset("drawer-nano", **fields)


def test_a_table_is_learnt_explained_and_repeated():
    """Two of six columns decide; they are found, and what is told of hidden columns helps nobody to forget it."""
    from sklearn.exceptions import NotFittedError

    from qkv.tables import TabularClassifier, TabularRegressor

    r = np.random.default_rng(0)
    x = r.normal(size=(600, 6))
    x[:, 5] = r.integers(0, 3, 600)  # categories
    y = np.where(x[:, 1] + 2 * (x[:, 5] == 1) > 0.7, "yes", "no")
    fit = lambda **more: TabularClassifier(epochs=40, categories=(5,), width=2, batch=64, seed=3, **more).fit(x[:500], y[:500])
    model = fit()
    assert model.score(x[500:], y[500:]) > 0.9 and abs(model.feature_importances_.sum() - 1) < 1e-9
    assert set(np.argsort(model.feature_importances_)[-2:]) == {1, 5}
    importance, masks = model.explain(x[500:])
    assert importance.shape == (100, 6) and masks.shape == (3, 100, 6) and np.allclose(masks.sum(-1), 1)
    assert (fit().predict_proba(x[500:]) == model.predict_proba(x[500:])).all()
    told = fit(pretrain=3)
    assert told.score(x[500:], y[500:]) > 0.85 and not (told.predict_proba(x[500:]) == model.predict_proba(x[500:])).all()
    number = TabularRegressor(epochs=40, batch=64).fit(x[:500, :5], 3 * x[:500, 1] + 100)
    assert number.score(x[500:, :5], 3 * x[500:, 1] + 100) > 0.8
    with pytest.raises(NotFittedError):
        TabularClassifier().predict(x)
    with pytest.raises(ValueError, match="NaN"):
        model.predict(np.full((1, 6), np.nan))
    with pytest.raises(ValueError, match="only one class is present"):
        TabularClassifier().fit(x, np.zeros(600))
