"""What variants cost and how good they are: qkv cost, qkv compare, and the tasks made for it."""

import itertools
import json

import pytest
import torch

from qkv import models
from qkv.cli import compare, sweep
from qkv.cli.main import main
from qkv.core import Documents, read_pattern
from qkv.data import Data, DataError, open_corpus, tasks
from qkv.models import account

TINY = ("dim=32", "layers=2", "heads=2", "batch=4", "threads=1", "precision=exact")


def qkv(*words):
    return main([str(w) for w in words])


def test_values_with_commas_are_combined():
    single, several, all_of = sweep.variants(["steps=5", 'ffn=gated(silu, bias=false),"plain(relu)"', "pattern=causal,sliding(4)"])
    assert single == ["steps=5"] and list(several) == ["ffn", "pattern"]
    assert [v["pattern"] for v in all_of] == ["causal", "sliding(4)"] * 2 and all_of[0]["ffn"] == "gated(silu, bias=false)"
    for bad in ("a=1,,2", "a=1,"):
        with pytest.raises(ValueError, match="between two commas"):
            sweep.variants([bad])
    for bad in ("0", "x", "1.5", "4,-1"):
        with pytest.raises(ValueError, match="length="):
            sweep.whole_numbers("length", bad)


def test_a_crossover_lies_between_the_lengths_around_it():
    base = [(n, n**2 / 1000) for n in (256, 512, 1024, 2048)]
    assert compare.crossover(base, [(n, n) for n, _ in base]).startswith("about 1,0")  # n^2 / 1000 = n at 1000
    assert compare.crossover(base, [(n, n * 10) for n, _ in base]) == "over 2,048"
    assert compare.crossover(base, [(n, n / 1e9) for n, _ in base]) == "256 or less"


def test_flops_count_what_a_pattern_lets_a_token_see():
    for text, n in (("causal", 100), ("sliding(7)", 100), ("window(3) | globals(2)", 60), ("full", 50), ("strided(5)", 90)):
        pattern = read_pattern(text) & Documents()
        position = torch.arange(n)[None]
        from qkv.core import Tokens

        t = Tokens(position)
        assert account.seen(pattern, n) == pytest.approx(pattern.allows(t.as_queries(), t.as_keys()).expand(1, n, n).float().sum() / n)
    assert account.seen(read_pattern("sliding(64)"), 65536) == pytest.approx(64, rel=0.01)
    scores = lambda n, **f: account.flops(account.blank(models.preset("gpt-mini", length=n, **f)), n)["scores and values"]
    assert scores(4096) / scores(1024) == pytest.approx(4, rel=0.01)  # of a token; of a text the square
    for fields in ({"pattern": "sliding(64)"}, {"kernel": "performer"}):
        assert scores(4096, **fields) / scores(1024, **fields) == pytest.approx(1, rel=0.03)


def test_what_decoding_keeps_is_counted_as_the_cache_holds_it():
    """Per length: everything, a window, or a state; measured on caches."""
    for fields in ({}, {"pattern": "sliding(8)"}, {"kernel": "performer"}, {"kv_heads": 1}):
        model = models.create("gpt-nano", **{"vocab": 50, "dim": 32, "heads": 2, "layers": 2, "length": 128} | fields).eval()
        from qkv.core import Cache

        cache = Cache(96, rolling=True)
        with torch.no_grad():
            for part in torch.randint(0, 50, (1, 96)).split(16, 1):
                model(input_ids=part, cache=cache)
        counted, held = account.cache_bytes(model, 4, 96), cache.nbytes()
        assert held == counted if "pattern" not in fields else counted <= held <= 3 * counted  # a window's buffers have room


def test_generation_is_the_same_with_a_window_or_a_state():
    """The rolling cache through generate(), beside reading everything again."""
    from qkv.generation import sampling

    for fields in ({"pattern": "sliding(5)"}, {"kernel": "performer(redraw=0, eps=1e-9)"}, {"pattern": ("sliding(4)", "causal")}):
        torch.manual_seed(0)
        shape = {"vocab": 50, "dim": 32, "heads": 2, "layers": 2, "length": 64, "position": "rope"}
        model = models.create("gpt-nano", **shape | fields).double().eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
        prompts = [[5, 6, 7, 8, 9, 10, 11], [3, 4]]
        pick = sampling.Sampling(temperature=0)
        one, two = (sampling.generate(model, prompts, pick, most=20, cached=cached) for cached in (True, False))
        assert one == two and len(one[0]) > 10


def test_learned_positions_are_stretched():
    model = models.create("gpt-nano", vocab=50, length=16, dim=32, heads=2)
    longer = models.adapt(model, length=31)
    a, b = model.embed.position.weight, longer.embed.position.weight
    torch.testing.assert_close(b[::2], a)  # every second one is an old one, between them lies the mean
    torch.testing.assert_close(b[1::2], (a[1:] + a[:-1]) / 2)
    torch.testing.assert_close(models.adapt(model, length=8).embed.position.weight, a[:8])
    assert longer(input_ids=torch.randint(0, 50, (1, 31)))["logits"].shape == (1, 31, 50)


def test_long_tasks_have_the_answers_their_rules_say():
    for question, answer in tasks.make("gap(length=30, keep=4)", 20):
        assert question == answer + "." * 26 and len(answer) == 4
    for question, answer in tasks.make("recall(60)", 20):
        told, asked = question.split("?")
        known = {told[i : i + 2]: told[i + 2] for i in range(0, len(told), 3)}
        assert known[asked] == answer and len(known) == 19 and len(question) == 60
    for question, answer in tasks.make("needle(length=300)", 20):
        word = question.removesuffix("?").rsplit(" ", 1)[1]
        assert f"the code of {word} is {answer}. " in question and 200 < len(question) < 330

    def value(text):  # an evaluator of its own: innermost list first
        import re

        while found := re.search(r"\[(\w+) ([\d ]+)\]", text):
            xs = [int(x) for x in found[2].split()]
            result = {"MAX": max(xs), "MIN": min(xs), "SM": sum(xs) % 10, "MED": sorted(xs)[len(xs) // 2]}[found[1]]
            text = text[: found.start()] + str(result) + text[found.end() :]
        return text

    rows = tasks.make("listops(length=80, depth=3)", 200)
    assert all(value(q) == a and len(q) <= 80 for q, a in rows) and any(q.count("[") > 4 for q, _ in rows)
    for bad, message in (("recal", "Did you mean 'recall'"), ("recall(0)", "at least 1"), ("gap(depth=3)", "gap takes length, keep"),
                         ("listops(length=3)", "length=9")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            open_corpus(Data(source=f"task:{bad}"))


def test_cost_counts_and_measures(capsys):
    assert qkv("cost", "gpt-nano", "length=32,64", "pattern=causal,sliding(8)") == 0
    out = capsys.readouterr().out
    assert "pattern=sliding(8)" in out and "GFLOP/s" in out and out.count(" ms ") == 4 and "multi-query" in out
    assert qkv("cost", "llama-3-8b", "length=8192", "kv_heads=32,8", "--plan") == 0
    out = capsys.readouterr().out
    assert "68.3 GiB" in out and "8 GiB" in out and "2 GiB" in out and " ms" not in out
    for words, message in ((("gpt-nano", "pattern=window(0)"), "radius must be"), (("gpt-nano", "length=0"), "length=0"),
                           (("bert-nano", "kernel=linformer(999)", "length=64"), "rank must be"), ((), "name one preset"),
                           (("gpt-nano", "--what"), "no flag --what")):  # fmt: skip
        assert qkv("cost", *words) == 2 and message in capsys.readouterr().err


def test_compare_trains_variants_and_goes_on(tmp_path, capsys, monkeypatch):
    (tmp_path / "t.txt").write_text("".join(f"line {i}: {i * i} is the square of {i}.\n" for i in range(400)))
    words = ("compare", "gpt-nano", f"data={tmp_path / 't.txt'}", "tokenizer=char", "steps=4", "position=rope,alibi", "length=16",
             "evaluate=16,32", "seeds=2", f"out={tmp_path / 'c'}", *TINY)  # fmt: skip
    assert qkv(*words) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "c/results.jsonl").read_text().splitlines()]
    assert {(r["variant"], r["seed"]) for r in rows} == set(itertools.product(("position=rope", "position=alibi"), (1, 2)))
    for r in rows:
        assert r["loss"] < r["before"] and set(r["lengths"]) == {"16", "32"} and r["mib"] > 50
        assert r["lengths"]["16"] == pytest.approx(r["loss"], rel=0.05)
    mean = sum(r["loss"] for r in rows if r["variant"] == "position=rope") / 2
    assert f"{mean:.4f} ±" in out and f"{mean:.4f} ±" in (tmp_path / "c/table.txt").read_text()
    assert (tmp_path / "c/picture.png").read_bytes()[:4] == b"\x89PNG"
    kept = (tmp_path / "c/results.jsonl").read_text().splitlines()
    (tmp_path / "c/results.jsonl").write_text("\n".join(kept[:3]) + "\n")  # interrupted before the last
    calls, child = [], sweep.child
    monkeypatch.setattr(sweep, "child", lambda *a: calls.append(a) or child(*a))
    assert qkv(*words) == 0 and len(calls) == 1  # only what was missing is trained
    again = json.loads((tmp_path / "c/results.jsonl").read_text().splitlines()[-1])
    assert again["loss"] == json.loads(kept[-1])["loss"]


def test_compare_swaps_parts_of_a_trained_model(tmp_path, capsys, monkeypatch):
    (tmp_path / "t.txt").write_text("".join(f"line {i}: {i * i} is the square of {i}.\n" for i in range(400)))
    monkeypatch.setenv("QKV_RUNS", str(tmp_path / "runs"))
    data = (f"data={tmp_path / 't.txt'}", "tokenizer=char", "length=16", "across=true")
    assert qkv("train", "bert-nano", "steps=30", "lr=5e-3", *data, *TINY) == 0
    trained = json.loads(
        [line for line in next((tmp_path / "runs").glob("*/metrics.jsonl")).read_text().splitlines() if "valid_loss" in line][-1]
    )
    assert qkv("compare", "last", "kernel=softmax,performer(64),linformer(4)", "steps=2", f"out={tmp_path / 'c'}") == 0
    rows = {r["variant"]: r for r in map(json.loads, (tmp_path / "c/results.jsonl").read_text().splitlines())}
    assert rows["kernel=softmax"]["before"] == pytest.approx(trained["valid_loss"], rel=1e-5)
    assert abs(rows["kernel=performer(64)"]["before"] - trained["valid_loss"]) < 0.2
    assert "before" in capsys.readouterr().out


def test_compare_times_lengths(tmp_path, capsys):
    assert qkv("compare", "bert-nano", "kernel=softmax,performer", "length=32,64", "--time", f"out={tmp_path / 'c'}") == 0
    out = capsys.readouterr().out
    assert "faster than kernel=softmax from" in out and (tmp_path / "c/picture.png").exists()
    assert len((tmp_path / "c/results.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "words, message",
    (
        (("gpt-nano", "steps=4"), "several values"),
        (("position=rope,alibi",), "name one preset"),
        (("gpt-nano", "position=rope,alibbi"), "Did you mean 'alibi'"),
        (("gpt-nano", "kernel=softmax,linformer"), "cannot follow the pattern"),
        (("gpt-nano", "position=rope,alibi", "seeds=0"), "seeds=0"),
        (("gpt-nano", "position=rope,alibi", "--tim"), "no flag --tim"),
        (("bert-nano", "kernel=softmax,performer", "--time"), "needs several lengths"),
        (("gpt-nano", "position=rope,", "steps=4"), "between two commas"),
    ),
)
def test_compare_refuses_before_it_trains(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "child", lambda *a: pytest.fail("something was trained"))
    assert qkv("compare", *words) == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
