"""Tables: cells to numbers and back, perceptrons and gates, TabNet and INVASE from files and as estimators."""

import json

import numpy as np
import pytest
import torch

from qkv import models, objectives
from qkv.cli.main import main
from qkv.data import Data
from qkv.data.columns import Column, Columns
from qkv.data.text import DataError
from qkv.objectives.table import losses
from qkv.training import folder


def people(path, rows=600, target="rich", seed=0):
    """A table with words, holes, a constant and a column that decides nothing."""
    r, lines = np.random.default_rng(seed), ["age,work,height,planet," + target]
    for _ in range(rows):
        age, work = int(r.integers(18, 80)), ("miner", "clerk", "none at all")[int(r.integers(0, 3))]
        rich = "yes" if (age > 45) != (work == "clerk") else "no"
        lines.append(f"{'?' if r.random() < 0.05 else age},{work},{r.normal(170, 9):.1f},earth,{rich}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_cells_become_numbers_and_categories():
    table = [["1", "?", "3", "5"], ["b", "a", "", "b"], ["7", "7", "7", "7"], [0, 1, 1.0, "x"]]
    found = Columns.of(["n", "w", "c", "mixed"], table)
    assert found.columns[1].levels == ("", "a", "b") and found.columns[3].levels == ("0", "1", "x") and found.columns[2].deviation == 1.0
    x = found.read(table)
    np.testing.assert_allclose(x[:, 0], [-2 / np.sqrt(8 / 3), 0, 0, 2 / np.sqrt(8 / 3)], rtol=1e-6)  # a missing number is the mean
    assert x[:, 1].tolist() == [3, 2, 1, 3] and x[:, 2].tolist() == [0] * 4 and x[:, 3].tolist() == [1, 2, 2, 3]
    assert found.read([["2"], ["new"], ["9"], ["y"]])[0].tolist() == pytest.approx([-1 / np.sqrt(8 / 3), 0, 2, 0])  # not seen in training
    assert found.fields(2) == {"features": 4, "categories": (1, 3), "sizes": (4, 4), "widths": (2, 2)}
    again = Columns.from_plain(json.loads(json.dumps(found.plain())))
    assert again == found


def test_bins_share_out_what_is_skewed():
    cells = [0.0] * 60 + [float(v) for v in range(1, 41)]
    (column,) = Columns.of(["gain"], [cells], bins=5).columns
    rank, bins = column.read([*cells, float("nan"), 1e9])
    assert len(set(bins[:60].tolist())) == 1 and not set(bins[:60].tolist()) & set(bins[60:100].tolist())
    assert (
        all(n >= 8 for n in np.unique(bins[:100], return_counts=True)[1])
        and bins[100] == 0
        and bins[101] == bins[99] == bins.max() < column.sizes[1]
    )
    assert (np.diff(rank[60:100]) >= 0).all() and abs(rank[:100]).max() <= np.sqrt(3) + 1e-6
    both = Columns.of(["gain", "w"], [cells, ["a"] * 100], bins=5)
    assert both.owner.tolist() == [0, 0, 1] and both.together(np.array([[1.0, 2.0, 4.0]])).tolist() == [[3.0, 4.0]]


def test_faults_of_a_table_are_named(tmp_path, capsys):
    path = people(tmp_path / "x.csv", 60)
    train = lambda *more: main(["train", "tabnet", f"data={path}", "epochs=1", "threads=1", *more])
    assert train() == 2 and "which column is asked for" in capsys.readouterr().err
    assert (
        train("target=poor") == 2
        and "has no column 'poor' (data.target); it has age, work, height, planet, rich" in capsys.readouterr().err
    )
    assert train("target=planet") == 2 and "is always earth" in capsys.readouterr().err
    assert train("target=rich", "bins=1") == 2 and "data.bins=1" in capsys.readouterr().err
    assert main(["train", "tabnet", "data=gate:maybe"]) == 2 and "there are and, or, nand" in capsys.readouterr().err
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], lines[5] + ",1", *lines[6:]]))
    assert train("target=rich") == 2 and "row 6: has 6 columns, and the header 5; a cell that holds a comma" in capsys.readouterr().err
    path.write_text("\n".join([lines[0], *(f"?,{line.split(',', 1)[1]}" for line in lines[1:])]))
    assert train("target=rich") == 2 and "column 'age' holds nothing" in capsys.readouterr().err
    with pytest.raises(DataError, match="not finite"):
        Column.of("n", ["1", "inf"])
    with pytest.raises(DataError, match="'word' is no number"):
        Column.of("n", ["1", "2"]).read(["word"])


def rows(path, text, target="y", part="train"):
    path.write_text(text)
    return objectives.TASKS["table"].read(Data(source=str(path), target=str(target)), str(path), part)


def reader(examples):
    """The task of a model that was made for these examples."""
    fields = objectives.TASKS["table"].shape(examples)
    return objectives.make_task("table", models.preset("mlp", **fields), None, 0)


REFUSED = (
    ("x.csv", "a,a,y\n1,2,0\n", "has the column 'a' twice"),
    ("x.csv", "a,b,y\n1,2,3,0\n1,2,0\n", "x.csv, row 2: has 4 columns, and the header 3; a cell that holds a comma"),
    ("x.jsonl", '{"a": 1, "y": 0}\n{"a": [1], "y": 0}\n', "x.jsonl, row 2: column 'a' holds a list"),
    ("x.jsonl", '{"a": 1, "y": 0}\n{"y": 0}\n', r"x.jsonl, row 2: has no column 'a' \(it has y\)"),
    ("x.jsonl", '{"y": 0}\n{"a": 1, "y": 0}\n', "x.jsonl, row 1: has no column 'a'"),
    ("x.csv", "a,y\n1,?\n2,\n", "x.csv: the column 'y', which is asked for, holds nothing"),
    ("x.csv", "a,y\n1,1.5\n2,1.5\n", "is always 1.5"),
    ("x.csv", "a,y\n1,1.5\n2,inf\n3,2.5\n", "x.csv, row 3: 'inf', which is asked for, is not finite"),
    ("x.csv", "a,y\n1,1\ninf,0\n", "x.csv, row 3: column 'a' holds a number that is not finite"),
    ("x.csv", "a,y\n?,1\n,0\n", "x.csv: column 'a' holds nothing in the training rows"),
)


@pytest.mark.parametrize("name, text, say", REFUSED)
def test_tables_that_are_refused_name_their_row(tmp_path, name, text, say):
    with pytest.raises(DataError, match=say):
        objectives.TASKS["table"].shape(rows(tmp_path / name, text))


def test_a_header_is_found_whatever_is_asked_for(tmp_path):
    text = "age,2020,y\n30,5,no\n40,6,yes\n"
    for asked, named in (("y", ("age", "2020")), (3, ("age", "2020")), (2020, ("age", "y"))):
        found = rows(tmp_path / "x.csv", text, asked)
        assert len(found) == 2 and found[0].more["names"] == named
    bare = rows(tmp_path / "y.csv", "30,5,no\n40,6,yes\n", 3)
    assert [e.label for e in bare] == ["no", "yes"] and bare[0].more["names"] == ("column 1", "column 2")


def test_a_class_of_a_table_has_one_spelling(tmp_path):
    found = rows(tmp_path / "x.jsonl", '{"a": 1, "y": 1}\n{"a": 2, "y": 1.0}\n{"a": 3, "y": "1"}\n{"a": 4, "y": 0}\n{"a": 5, "y": null}\n')
    fields = objectives.TASKS["table"].shape(found)
    assert fields["label_names"] == ("0", "1") and [e.label for e in found] == ["1", "1.0", "1", "0", None]
    task = reader(found)
    assert [i["wanted"] for i in task.encode(found)] == ["1", "1", "1", "0", None]
    with pytest.raises(DataError, match="z.csv, row 2: the label '2' was not seen in training; there were 0, 1"):
        task.encode(rows(tmp_path / "z.csv", "a,y\n1,2\n"))
    truth = objectives.TASKS["table"].shape(rows(tmp_path / "t.jsonl", '{"a": 1, "y": true}\n{"a": 2, "y": false}\n'))
    assert truth["label_names"] == ("false", "true")


def test_columns_go_by_their_names(tmp_path):
    """Two files whose columns stand in another order are one table."""
    a = rows(tmp_path / "a.csv", "age,work,y\n30,miner,1\n40,clerk,0\n")
    b = rows(tmp_path / "b.csv", "y,work,age\n1,clerk,50\n0,miner,20\n")
    task = reader([*a, *b])
    together = [("age", ["30", "40", "50", "20"]), ("work", ["miner", "clerk", "clerk", "miner"])]
    assert task.columns == Columns.of([n for n, _ in together], [cells for _, cells in together])
    items = task.encode([*b, *a])
    np.testing.assert_allclose(
        [float(i["row"][0]) for i in items],
        np.array([50, 20, 30, 40]) / np.std([20, 30, 40, 50]) - 35 / np.std([20, 30, 40, 50]),
        rtol=1e-5,
    )


def test_what_a_table_leaves_out_or_reads_in_another_way_is_said(tmp_path, capsys):
    good = "".join(f"{n},miner,{n % 2}\n" for n in range(20))
    train = rows(tmp_path / "a.csv", "age,work,y\n" + good + '"1,000",clerk,1\n30,clerk,\n')
    task = reader(train)
    said = capsys.readouterr().err
    assert "a.csv, row 22: column 'age' is read as categories, not numbers, because of 1 cells as '1,000' here" in said
    assert len(task.encode(train, training=True)) == 21
    assert "a.csv, row 23: 1 of 22 rows have nothing in the column that is asked for" in capsys.readouterr().err
    other = rows(tmp_path / "b.csv", "age,work,height,y\n5,miner,180,1\n6,pilot,170,0\n7,baker,160,0\n")
    task.encode(other)
    said = capsys.readouterr().err
    assert "b.csv, row 2: the column 'height' is not read, since training did not have it" in said
    assert "b.csv, row 3: 2 cells of column 'work' hold categories that training did not see, as 'pilot' here" in said
    numbers = reader(rows(tmp_path / "c.csv", "age,y\n" + "".join(f"{n},{n % 2}\n" for n in range(9))))
    with pytest.raises(DataError, match="d.csv, row 3: column 'age': 'old' is no number, and in training all were"):
        numbers.encode(rows(tmp_path / "d.csv", "age,y\n1,1\nold,0\n"))
    assert Column.of("n", ["1_000", "1000"]).levels == ("1000", "1_000")


@pytest.mark.parametrize("name", ["tabnet", "invase", "mlp"])
def test_a_column_is_learnt_from_the_others(name, tmp_path, capsys):
    more = {"tabnet": ["epochs=60"], "invase": ["epochs=60", "lr=3e-3", "task=table(sparsity=0.05)"], "mlp": ["epochs=25"]}[name]
    assert main(["train", name, f"data={people(tmp_path / 'x.csv')}", "target=rich", "batch=64", "threads=1", "holdout=0.2", *more]) == 0
    run = folder.find("last")
    held = [m for m in folder.read_metrics(run / "metrics.jsonl") if "valid_auc" in m]
    assert max(m["valid_auc"] for m in held) > 0.9 > held[0]["valid_auc"]
    other = people(tmp_path / "y.csv", 40, seed=1)
    other.write_text(other.read_text().replace("miner", "pilot", 3))  # a word that training did not see
    capsys.readouterr()
    picture = [f"picture={tmp_path / 'm.png'}"] if name != "mlp" else []
    assert main(["eval", str(run), str(other), *picture]) == 0
    assert "auc" in capsys.readouterr().out and (not picture or (tmp_path / "m.png").stat().st_size > 5000)
    said = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(said) == 40 and {s["said"] for s in said} == {"yes", "no"}
    model = models.load(sorted((run / "checkpoints").iterdir())[-1])
    if name != "mlp":
        task = objectives.make_task("table", model.config, None, 0)
        items = task.encode(objectives.TASKS["table"].read(Data(source=str(other), target="rich"), str(other), "test"))
        importance = model(torch.stack([i["row"] for i in items]))["importance"].mean(0)
        assert set(importance.topk(2).indices.tolist()) == {0, 1}
    (tmp_path / "z.csv").write_text("age,work,rich\n3,miner,no\n")
    assert main(["eval", str(run), str(tmp_path / "z.csv")]) == 2 and "there is no column 'height'" in capsys.readouterr().err
    if name == "mlp":
        assert main(["eval", str(run), str(other), f"picture={tmp_path / 'm.png'}"]) == 2 and "has no masks" in capsys.readouterr().err


def test_a_number_is_foretold_in_its_own_unit(tmp_path):
    r = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{1000 + 30 * a - 10 * b:.2f}" for a, b in r.normal(size=(400, 2))]
    (tmp_path / "x.csv").write_text("a,b,price\n" + "\n".join(rows))
    assert main(["train", "mlp", f"data={tmp_path / 'x.csv'}", "target=price", "threads=1", "epochs=40", "holdout=0.2"]) == 0
    run = folder.find("last")
    assert [m for m in folder.read_metrics(run / "metrics.jsonl") if "valid_explained" in m][-1]["valid_explained"] > 0.97
    assert main(["eval", str(run)]) == 0
    said = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert np.mean([abs(s["said"] - float(s["wanted"])) for s in said]) < 8


@pytest.mark.parametrize("gate, learnt", [("and", True), ("or", True), ("nand", True), ("nor", True), ("xor", False), ("xnor", False)])
def test_a_perceptron_learns_the_gates_that_a_line_divides(gate, learnt):
    """And XOR, which it cannot (Minsky and Papert, 1969), is learnt with a hidden layer by back-propagation."""
    for name, right in (("perceptron", learnt), ("mlp", True)):
        assert main(["train", name, f"data=gate:{gate}", "threads=1", "seed=3", "--quiet"]) == 0
        held = [m for m in folder.read_metrics(folder.find("last") / "metrics.jsonl") if "valid_accuracy" in m]
        assert (max(m["valid_accuracy"] for m in held) == 1.0) is right


def test_a_selector_is_paid_for_what_its_columns_are_worth():
    """The gradient of the selector's scores is the estimate of the paper, written out; the predictor's own is not touched by it."""
    torch.manual_seed(0)
    model = models.build(models.Selector(features=3, hidden=8, judge_hidden=8, layers=2)).double()
    x, y = torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1])
    state = torch.random.get_rng_state()
    value, wrong = losses(model, x, y, 0.2)
    scores = model.selector(x)
    (mine,) = torch.autograd.grad(value.sum(), [model.selector[-1].bias], retain_graph=True)
    torch.random.set_rng_state(state)
    out = model(x, draw=True)
    cost = torch.nn.functional.cross_entropy(out["logits"], y, reduction="none") - torch.nn.functional.cross_entropy(
        out["baseline_logits"], y, reduction="none"
    )
    p = scores.sigmoid()
    wanted = (cost.detach()[:, None] * (out["chosen"] - p) + 0.2 / 3 * p * (1 - p)).sum(0)  # d log pi / d score = s - p
    torch.testing.assert_close(mine, wanted, atol=1e-12, rtol=0)
    extreme = models.build(models.Selector(features=3, hidden=8, judge_hidden=8, layers=2))
    extreme.selector[-1].bias.data.fill_(200.0)
    losses(extreme, x.float(), y, 0.2)[0].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in extreme.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["TabularClassifier", "TabularRegressor", "SelectorClassifier", "SelectorRegressor"])
def test_estimators_pass_the_checks_of_scikit_learn(kind):
    from sklearn.utils.estimator_checks import check_estimator

    from qkv import tables

    found = check_estimator(getattr(tables, kind)(), on_fail=None)
    failed = [(r["check_name"], str(r["exception"])) for r in found if r["status"] == "failed"]
    assert len(found) > 40 and not failed


def test_estimators_are_cloned_and_selected_over():
    """What scikit-learn does with an estimator: clone, cross-validate, repeat."""
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_score

    from qkv.tables import SelectorClassifier

    r = np.random.default_rng(0)
    x = r.normal(size=(600, 6))
    y = (x[:, 1] * x[:, 4] > 0).astype(int)
    model = SelectorClassifier(epochs=80, batch=64, hidden=32, judge_hidden=64, lr=3e-3, sparsity=0.05)
    assert cross_val_score(clone(model), x, y, cv=2).mean() > 0.8
    model.fit(x, y)
    assert (
        set(np.argsort(model.feature_importances_)[-2:]) == {1, 4} and model.explain(x)[0].shape == (600, 6) and model.explain(x)[1] is None
    )
    assert (clone(model).fit(x, y).predict_proba(x) == model.predict_proba(x)).all()
    x[:, 5] = 7  # a constant, and a column of categories of which one comes later
    x[:, 0] = r.integers(0, 3, 600)
    binned = SelectorClassifier(epochs=3, categories=(0,), bins=8).fit(x, y)
    later = x[:4].copy()
    later[:, 0] = 9
    assert binned.explain(later)[0].shape == (4, 6) and np.isfinite(binned.predict_proba(later)).all()
