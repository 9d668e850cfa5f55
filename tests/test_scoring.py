"""Held-out numbers: every token is scored exactly once, and the loss is what ten lines of torch say."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import qkv
from qkv import data, models, objectives
from qkv.cli.main import main
from qkv.data import batches, shards
from qkv.data import tokenizer as tokenizers
from qkv.evaluation.loss import bits_per_byte, described, evaluate, figures
from qkv.training import folder, loop, recipe

TEXT = "the cat sat on the mat and the dog ran to the house where the bird sang a song of the sea " * 8


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train("bpe", [TEXT], 280)


def packed(lengths, seed=0, vocab=200, first=8):
    """Shards of documents of these lengths, of ids drawn at random."""
    ids = np.random.default_rng(seed).integers(first, vocab, sum(lengths))
    return shards.Shards(ids, np.cumsum(lengths), int(sum(lengths)) * 3)


def decoder(length=8, **fields):
    torch.manual_seed(0)
    return qkv.create("gpt-nano", vocab=300, length=length, dim=16, layers=1, heads=2, **fields).double().eval()


def held_out(model, objective, text, length, rows=3, across=False):
    """What `qkv eval` works out of a text."""
    windows = data.Windows(text, min(length + objective.extra, len(text)), across=across)
    return evaluate(model, objective, objective.held_out(windows, rows))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(2, 9), extra=st.integers(0, 30), rows=st.integers(1, 5), overlap=st.integers(0, 1))
def test_cover_reads_every_token_once(length, extra, rows, overlap):
    text = packed([length + extra])
    seen, groups = [], list(batches.Windows(text, length).cover(rows, overlap))
    for ids, _, _ in groups:
        assert 1 <= len(ids) <= rows
        for row in ids:
            seen += row.tolist()[overlap if seen else 0 :]
    assert seen == text.ids.tolist()


@settings(max_examples=60, deadline=None)
@given(length=st.integers(2, 9), extra=st.integers(0, 30), epoch=st.integers(0, 5))
def test_an_epoch_reads_all_whole_windows(length, extra, epoch):
    windows = batches.Windows(packed([length + extra]), length)
    whole = (length + extra) // length
    assert len(windows) == whole and windows.in_order().tolist() == [i * length for i in range(whole)]
    starts = sorted(windows.epoch(epoch).tolist())
    assert np.diff(starts).tolist() == [length] * (whole - 1)
    assert starts[0] >= 0 and starts[-1] + length <= length + extra


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(3, 9), st.integers(1, 4))
def test_every_token_but_a_documents_first_is_scored_once(lengths, length, rows):
    """An independent log-likelihood: each document by itself, in pieces that begin where rows begin."""
    if sum(lengths) < 2:
        return
    model, text = decoder(length=12, position="none", pattern="sliding(1)"), packed(lengths)
    objective = objectives.Causal.__new__(objectives.Causal)
    held = held_out(model, objective, text, length, rows)
    ids, total, count = torch.from_numpy(text.ids), 0.0, 0
    begins = {0, *text.ends.tolist()}
    for i in range(1, len(ids)):  # under a window of one token the next one goes by the last alone, wherever rows are cut
        if i not in begins:
            log = model(input_ids=ids[i - 1 : i][None])["logits"][0, -1].log_softmax(-1)
            total, count = total - log[ids[i]].item(), count + 1
    assert held["scored"] == count == sum(lengths) - len(lengths)
    assert count == 0 or held["loss"] == pytest.approx(total / count, abs=1e-9)


@pytest.mark.parametrize("tokens", [2, 7, 8, 9, 10, 15, 16, 17, 18, 24, 25, 26, 33])
def test_rows_of_a_decoder_around_every_boundary(tokens):
    """With context: each row of length + 1 tokens predicts all but its first, and begins with the last one of the row before."""
    model, text, length = decoder(), packed([tokens]), 8
    objective = objectives.Causal.__new__(objectives.Causal)
    held, total = held_out(model, objective, text, length), 0.0
    ids = torch.from_numpy(text.ids)
    for start in range(0, tokens - 1, length):
        row = ids[start : start + length + 1]
        total += F.cross_entropy(model(input_ids=row[None, :-1])["logits"][0], row[1:], reduction="sum").item()
    assert held["scored"] == tokens - 1
    assert held["loss"] == pytest.approx(total / (tokens - 1), abs=1e-9)


@pytest.mark.parametrize("tokens", [3, 7, 8, 9, 16, 17, 23, 24])
def test_rows_of_an_encoder_around_every_boundary(tokenizer, tokens):
    """Every token is in one row, and what is masked is scored as it was."""
    torch.manual_seed(0)
    model = qkv.create("bert-nano", vocab=len(tokenizer), length=8, dim=16, layers=1, heads=2).double().eval()
    text = packed([tokens], vocab=len(tokenizer))
    objective = objectives.Masked(tokenizer, rate=0.5)
    windows = data.Windows(text, min(8, tokens))
    cuts = [objective.batch(cut, data.rng(0, i)) for i, cut in enumerate(windows.cover(2, 0, objective.least))]
    assert sum(b.tokens for b in cuts) == tokens
    total = count = 0
    for b in cuts:
        logits = model(input_ids=b.inputs["input_ids"])["logits"].flatten(0, 1)[b.inputs["at"]]
        total, count = total + F.cross_entropy(logits, b.labels, reduction="sum").item(), count + len(b.labels)
    held = evaluate(model, objective, iter(cuts))
    assert held["scored"] == count > 0 and held["loss"] == pytest.approx(total / count, abs=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("budget", [1, 16, 40, 4096])
def test_pairs_of_an_encoder_decoder_are_all_scored(tokenizer, count, budget):
    torch.manual_seed(0)
    model = qkv.create("transformer-nano", vocab=len(tokenizer), length=16, dim=16, layers=1, heads=2, start=5, pad=0).double().eval()
    r = np.random.default_rng(1)
    pairs = [tuple(r.integers(8, len(tokenizer), r.integers(1, 12)).tolist() for _ in "ab") for _ in range(count)]
    objective = objectives.SequenceToSequence(tokenizer, model.config)
    groups = data.Pairs(pairs, tokens=budget).in_order()
    held = evaluate(model, objective, (objective.pairs(g, data.rng(0, i)) for i, g in enumerate(groups)))
    total = 0.0
    for a, b in pairs:
        said = model(input_ids=torch.tensor([[*a, tokenizer.eos]]), decoder_input_ids=torch.tensor([[5, *b]]))["logits"][0]
        total += F.cross_entropy(said, torch.tensor([*b, tokenizer.eos]), reduction="sum").item()
    assert held["scored"] == sum(len(b) + 1 for _, b in pairs)
    assert held["loss"] == pytest.approx(total / held["scored"], abs=1e-9)


def test_evaluating_while_training_takes_pairs_of_all_lengths(tokenizer):
    """With more batches than are asked for, the held-out loss is not that of the shortest ones."""
    pairs = [([9] * n, [10] * n) for n in range(1, 41)]

    class Run:
        valid = data.Pairs(pairs, tokens=1, rows=1)
        objective = objectives.SequenceToSequence(tokenizer)

    lengths = [b.inputs["input_ids"].shape[1] - 1 for b in loop.valid_batches(Run, 5, 8)]
    assert lengths[0] == 1 and lengths[-1] == 40 and len(lengths) == 5 and np.diff(lengths).max() < 12
    assert len(list(loop.valid_batches(Run, 39, 8))) == 39 and len(list(loop.valid_batches(Run, 99, 8))) == 40


def objectives_of_text(tokenizer):
    """Every objective that reads running text, with a model that carries it."""
    tokenizer.add_sentinels(100)
    small = dict(vocab=len(tokenizer), dim=16, layers=1, heads=2, hidden=20, pad=tokenizer.pad)
    bases = {"Decoder": "gpt-nano", "Encoder": "bert-nano", "EncoderDecoder": "t5-nano", "Recurrent": "lstm-nano"}
    for name, kind in objectives.OBJECTIVES.items():
        if "text" not in kind.reads:
            continue
        for topology in kind.topologies:
            if topology not in bases:
                continue
            fields = {} if topology == "Recurrent" else {"length": 16}
            fields |= {"pattern": "prefix"} if name == "prefix" else {}
            fields |= {"start": tokenizer.bos} if topology == "EncoderDecoder" else {}
            for output in kind.outputs:
                cfg = models.preset(
                    bases[topology], **small if topology != "Recurrent" else {"vocab": len(tokenizer)}, output=output, **fields
                )
                yield name, objectives.make(name, cfg, tokenizer, False), models.build(cfg).double().eval()


def test_short_last_rows_are_scored_by_every_objective(tokenizer):
    """A last row of any length down to the fewest tokens that mean something gives a finite number and no error."""
    seen = 0
    for name, objective, model in objectives_of_text(tokenizer):
        objective.prepare(model)
        trained = objectives.joint(model, objective).double().eval()
        for rest in range(objective.least, 6):
            length = 12
            step = length + objective.extra - max(0, objective.extra)
            text = packed([2 * step + rest], vocab=200)
            held = held_out(trained, objective, text, length, across=True)
            assert math.isfinite(held["loss"]) and held["scored"] > 0, (name, rest)
            windows = data.Windows(text, length + objective.extra, across=True)
            read = sum(len(ids) * ids.shape[1] for ids, _, _ in windows.cover(3, max(0, objective.extra), objective.least))
            assert read >= len(text) - max(0, objective.least - 1), (name, rest)
        seen += 1
    assert seen >= len({k for k, v in objectives.OBJECTIVES.items() if "text" in v.reads})


def test_a_text_alone_has_no_partner_to_be_found(tokenizer):
    model = qkv.create("bert-nano", vocab=len(tokenizer), output="hidden", dim=16, layers=1, heads=2)
    objective = objectives.OBJECTIVES["contrastive"](tokenizer)
    one = evaluate(model, objective, [objective.pairs([([9, 10], [11])], None)])
    assert one["scored"] == 0
    both = evaluate(model, objective, [objective.pairs(g, None) for g in ([([9], [11]), ([12], [13])], [([9, 10], [11])])])
    assert both["scored"] == 2


def test_bits_a_byte_are_of_objectives_that_predict_every_token(tokenizer):
    prefix = objectives.OBJECTIVES["prefix"](tokenizer)
    causal = objectives.Causal(tokenizer)
    assert causal.predicts_all and not prefix.predicts_all and not objectives.Masked(tokenizer).predicts_all


TALES = ["the cat sat", "über alles", "", "a", "the the cat"]


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_bits_a_byte_are_the_length_of_a_code(kind, across, tmp_path, monkeypatch):
    """Against the sum of the logarithms of every predicted token, and the bytes of what they spell."""
    monkeypatch.setenv("QKV_CACHE", str(tmp_path))
    tokenizer = tokenizers.train(kind, TALES * 4, 300)
    model, objective = decoder(), objectives.Causal(tokenizer)
    windows = data.Windows(shards.build(TALES, tokenizer, kind), 6, across=across)
    held = evaluate(model, objective, objective.held_out(windows, 2))
    told, firsts = 0, 0
    for i, text in enumerate(TALES):
        ids = [*tokenizer.encode(text), tokenizer.eos]
        if not across or i == 0:
            firsts += len(text.encode()) - len(tokenizer.decode(ids[1:]).encode())
        told += len(text.encode())
    wanted = held["loss"] * held["scored"] / math.log(2) / (told - firsts)
    assert held["scored"] == len(windows.shards) - (1 if across else len(TALES))
    assert bits_per_byte(held["loss"], windows, tokenizer) == pytest.approx(wanted, rel=1e-12)


def test_figures_are_whole():
    held = {"loss": 7.64, "perplexity": 2086.11, "accuracy": 0.125, "scored": 40, "bits_per_byte": 2.5, "mse": 0.25}
    assert figures(held) == [("perplexity", "2,086.11"), ("accuracy", "12.5 %"), ("mse", "0.2500")]
    assert described(held) == "perplexity 2,086.11, accuracy 12.5 %, mse 0.2500"


def test_the_panel_shows_the_whole_perplexity():
    from rich.console import Console

    from qkv.cli.panel import Show

    show = Show("runs/x", "x")
    show.held = [(0, {"loss": 7.643, "perplexity": 2086.11, "accuracy": None, "scored": 3, "bits_per_byte": 2.5})]
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(show.view())
    assert "2,086.11" in console.export_text()


# --- pairs that are too long ---------------------------------------------------------------------------------------------------------


def long_pairs(tmp_path, rows=40):
    a, b = ["x " * (2 + i % 5) for i in range(rows)], ["y " * (2 + i % 3) for i in range(rows)]
    a[3], b[3], a[7], b[7] = "x y " * 60, "y x " * 40, "x " * 30, "y x " * 60
    (tmp_path / "a.txt").write_text("\n".join(a))
    (tmp_path / "b.txt").write_text("\n".join(b))
    return {
        "source": str(tmp_path / "a.txt"),
        "target": str(tmp_path / "b.txt"),
        "valid": str(tmp_path / "a.txt"),
        "valid_target": str(tmp_path / "b.txt"),
    }


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("way", ["drop", "cut", "windows"])
def test_pairs_that_are_too_long_are_counted_and_a_key_decides(tmp_path, tokenizer, way, joined):
    cfg = data.Data(**long_pairs(tmp_path), too_long=way)
    corpus = data.open_corpus(cfg)
    train, _ = data.rows_of(cfg, corpus, tokenizer, length=32, joined=joined)
    assert len(corpus.notes) == 2 and all(
        f"2 of 40 {p} pairs" in n and f"too_long={way}" in n for n, p in zip(corpus.notes, ("training", "held-out"), strict=True)
    )
    whole = [tuple(tokenizer.encode_all(list(p))) for p in corpus.train]
    sizes = [len(a) + len(b) + 2 if joined else max(len(a), len(b)) + 1 for a, b in train.pairs]
    assert max(sizes) <= 32
    short = [p for p in whole if (len(p[0]) + len(p[1]) + 2 if joined else max(map(len, p)) + 1) <= 32]
    assert len(short) == 38
    if way == "drop":
        assert train.pairs == short
    elif way == "cut":
        assert len(train.pairs) == 40 and train.pairs[3][0] == whole[3][0][: len(train.pairs[3][0])] and len(train.pairs[3][0]) >= 15
    else:
        at = train.pairs.index(whole[2]) + 1
        pieces = train.pairs[at : train.pairs.index(whole[4], at)]
        assert len(pieces) > 2 and all(a and b for a, b in pieces)
        assert tuple([i for p in pieces for i in p[side]] for side in (0, 1)) == whole[3]


def test_a_pair_that_cannot_be_cut_in_pieces_is_left_out_and_said(tmp_path, tokenizer):
    files = long_pairs(tmp_path)
    cfg = data.Data(**files, too_long="windows")
    corpus = data.open_corpus(cfg)
    corpus.train[3] = (corpus.train[3][0], "y")
    train, _ = data.rows_of(cfg, corpus, tokenizer, length=16)
    assert "but for 1, one side of which is too short for that" in corpus.notes[0] and "but for" not in corpus.notes[1]


def test_pairs_that_are_too_long_may_be_refused(tmp_path, tokenizer):
    cfg = data.Data(**long_pairs(tmp_path), too_long="refuse")
    with pytest.raises(
        data.DataError,
        match=r"training pair that begins with 'x y x y .*' has 240 and 160 tokens, too many for the model's 32 positions.*data.too_long",
    ):
        data.rows_of(cfg, data.open_corpus(cfg), tokenizer, length=32)
    with pytest.raises(data.DataError, match="data.too_long='ignore': must be one of drop, cut, windows, refuse"):
        data.Data(too_long="ignore")


def test_empty_sides_are_left_out_of_training_and_counted(tmp_path):
    (tmp_path / "a").write_text("one\n\nthree\nfour\n")
    (tmp_path / "b").write_text("eins\nzwei\n \nvier\n")
    corpus = data.open_corpus(
        data.Data(source=str(tmp_path / "a"), target=str(tmp_path / "b"), valid=str(tmp_path / "a"), valid_target=str(tmp_path / "b"))
    )
    assert corpus.train == [("one", "eins"), ("four", "vier")]
    assert corpus.notes[0] == "2 of 4 training pairs have an empty side and are left out"


# --- the log of a run ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def recipe_of(text, **train):
    model = {"preset": "gpt-nano", "dim": 16, "layers": 1, "heads": 2, "length": 8}
    raw = {"model": model, "data": {"source": str(text), "tokenizer": "char"}, "train": {"batch": 4, "threads": 1, "warmup": 1, **train}}
    return recipe.resolve(raw)


def rows_of(where):
    return folder.read_metrics(where / "metrics.jsonl")


@pytest.mark.parametrize("train", [{"steps": 4, "eval_every": 2}, {"steps": 3, "eval_every": 2}, {"steps": 1, "eval_every": 1}])
def test_every_evaluation_is_logged_once(text, tmp_path, train):
    (tmp_path / "run").mkdir()
    loop.train(recipe_of(text, **train), tmp_path / "run")
    held = [r["step"] for r in rows_of(tmp_path / "run") if "valid_loss" in r]
    assert held == sorted(set(held)) and held[0] == 0 and held[-1] == train["steps"]
    assert [r["step"] for r in rows_of(tmp_path / "run") if "loss" in r] == list(range(1, train["steps"] + 1))


def test_a_run_that_has_no_checkpoint_begins_its_log_anew(text, tmp_path):
    """As after a kill before the first save."""
    where = tmp_path / "run"
    where.mkdir()
    (where / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 9.0}) + "\n" for i in range(5)) + '{"step": 5, "l')
    loop.train(recipe_of(text, steps=2), where)
    assert [r["step"] for r in rows_of(where) if "loss" in r] == [1, 2]
    assert sum("valid_loss" in r and r["step"] == 0 for r in rows_of(where)) == 1


def test_seconds_are_of_training_and_one_step_at_least_is_made(text, tmp_path, monkeypatch):
    """A machine on which the first evaluation alone takes longer than the budget."""
    where, now = tmp_path / "run", [0.0]
    where.mkdir()
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    slow = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *a, **k: (now.__setitem__(0, now[0] + 100), slow(*a, **k))[1])
    step = loop.optim.factor
    monkeypatch.setattr(loop.optim, "factor", lambda *a: (now.__setitem__(0, now[0] + 2), step(*a))[1])
    loop.train(recipe_of(text, seconds=5, steps=None, eval_every=50), where)
    steps = [r for r in rows_of(where) if "loss" in r]
    assert [r["step"] for r in steps] == [1, 2, 3] and steps[0]["seconds"] == 2
    (tmp_path / "b").mkdir()
    loop.train(recipe_of(text, seconds=1, steps=None, eval_every=50), tmp_path / "b")
    assert [r["step"] for r in rows_of(tmp_path / "b") if "loss" in r] == [1]


def test_eval_prints_how_many_tokens_it_scored(text, tmp_path, capsys, monkeypatch):
    assert (
        main(["train", "gpt-nano", f"data={text}", "tokenizer=char", "steps=1", "length=8", "dim=16", "layers=1", "heads=2", "--quiet"])
        == 0
    )
    (tmp_path / "other.txt").write_text("the cat sang a song")
    capsys.readouterr()
    assert main(["eval", "last", str(tmp_path / "other.txt")]) == 0
    out = capsys.readouterr().out
    assert "of 19" in out and "bits a byte" in out  # 19 characters and their end, of which the first is not predicted


def test_the_first_example_is_shown_as_it_was_read(text, tmp_path, capsys):
    small = ["length=8", "dim=16", "layers=1", "heads=2", "steps=1"]
    assert main(["train", "gpt-nano", f"data={text}", "tokenizer=char", *small]) == 0
    assert "first training example, as it was read: the cat sat on the mat" in capsys.readouterr().out
    (tmp_path / "ab.tsv").write_text("".join(f"film {i} was {'good' if i % 2 else 'bad'}\t{i % 2}\n" for i in range(40)))
    words = ["task=classification", "tokenizer=char", "length=64", "dim=16", "layers=1", "heads=2", "steps=1"]
    assert main(["train", "bert-nano", f"data={tmp_path / 'ab.tsv'}", *words]) == 0
    assert "row 1: film 0 was bad  ->  0" in capsys.readouterr().out


@pytest.mark.parametrize("tokens", [9, 16, 17, 18, 40, 41, 72, 73, 79])
def test_every_window_of_a_contrastive_text_seeks_its_partner(tokenizer, tokens):
    """The last, shorter one too, and none alone."""
    torch.manual_seed(0)
    model = qkv.create("bert-nano", vocab=len(tokenizer), output="hidden", dim=16, layers=1, heads=2, length=8).double().eval()
    objective = objectives.OBJECTIVES["contrastive"](tokenizer)
    text = packed([tokens], vocab=200)
    cuts = list(objective.held_out(data.Windows(text, 8), 4))
    whole, rest = divmod(tokens, 8)
    wanted = whole + (rest >= objective.least)
    assert sum(len(b.labels) for b in cuts) == wanted and (wanted < 2 or min(len(b.labels) for b in cuts) >= 2)
    assert evaluate(model, objective, iter(cuts))["scored"] == (wanted if wanted > 1 else 0)


def test_pairs_that_need_others_are_never_alone():
    pairs = [([9] * n, [10] * n) for n in (1, 1, 1, 30, 31)]
    groups = data.Pairs(pairs, tokens=31).in_order(2)
    assert sorted(len(a) for g in groups for a, _ in g) == [1, 1, 1, 30, 31] and min(map(len, groups)) >= 2
    assert [len(g) for g in data.Pairs(pairs, tokens=31).in_order()] == [3, 1, 1]


def test_contrastive_runs_end_and_nothing_is_not_a_perfect_loss(text, tmp_path, capsys):
    small = ["tokenizer=char", "length=16", "dim=16", "layers=1", "heads=2", "steps=1", "batch=4"]
    assert main(["train", "bert-nano", "output=hidden", "objective=contrastive", f"data={text}", *small]) == 0
    assert "held-out texts are nearest to their own partner" in capsys.readouterr().out
    (tmp_path / "short.txt").write_text("the cat")
    assert main(["eval", "last", str(tmp_path / "short.txt")]) != 0
    told = capsys.readouterr()
    assert "there is nothing to score" in told.err + told.out and "0.0000" not in told.out


def test_training_says_of_how_many_targets_its_numbers_are(text, capsys):
    words = [f"data={text}", "tokenizer=char", "length=8", "dim=16", "layers=1", "heads=2", "steps=2", "batch=2", "eval_batches=2"]
    assert main(["train", "gpt-nano", *words]) == 0
    out = capsys.readouterr().out
    assert out.count("of 32 scored") == 3  # 2 batches of 2 rows of 8: before, after, and at the end


def test_a_finished_run_that_is_started_again_says_nothing_twice(text, tmp_path, capsys):
    words = [f"data={text}", "tokenizer=char", "length=8", "dim=16", "layers=1", "heads=2", "steps=3", "batch=2"]
    assert main(["train", "gpt-nano", *words]) == 0
    where = folder.find("last")
    log, samples = (where / "metrics.jsonl").read_text(), (where / "samples.md").read_text()
    capsys.readouterr()
    assert main(["train", str(where)]) == 0
    assert (where / "metrics.jsonl").read_text() == log and (where / "samples.md").read_text() == samples
    assert "steps=6" in capsys.readouterr().out  # what is proposed can be done
    assert main(["train", str(where), "steps=4"]) == 0
    assert [r["step"] for r in rows_of(where) if "valid_loss" in r] == [0, 3, 4]


def test_the_last_sample_is_made_once(text, tmp_path):
    where = tmp_path / "run"
    where.mkdir()
    loop.train(recipe_of(text, steps=4, sample_every=2, sample_tokens=2), where)
    assert (where / "samples.md").read_text().count("## step") == 2
