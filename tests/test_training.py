"""Objectives, optimisers, schedules, the loop: exact sums, exact resuming, nothing lost."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import qkv
from qkv import data, objectives
from qkv.checkpoints import runs
from qkv.checkpoints.files import CheckpointError, read_tensors
from qkv.data import tokenizer as tokenizers
from qkv.models import account
from qkv.models import loss as loss_of
from qkv.training import assemble, folder, loop, machine, optim, recipe

TEXT = "".join(f"line {i}: {i * i} is the square of {i}.\n" for i in range(600))
SMALL = {"dim": 32, "layers": 2, "heads": 2, "length": 16}


@pytest.fixture(scope="module")
def tok():
    return tokenizers.train("bpe", [TEXT], 300)


def make_recipe(source, preset="gpt-nano", model=None, data_=None, **train):
    raw = {"model": {"preset": preset} | SMALL | (model or {}), "data": {"source": str(source), "tokenizer": "char"} | (data_ or {}),
           "train": {"steps": 12, "batch": 4, "threads": 1, "precision": "exact", "warmup": 2, "eval_every": 6, "save_every": 4,
                     "sample_every": 100, "sample_tokens": 5} | train}  # fmt: skip
    return recipe.resolve(raw)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    return tmp_path / "t.txt"


def train(r, where, **kw):
    where.mkdir(exist_ok=True)
    (where / "recipe.toml").write_text(recipe.dumps(r))
    held = loop.train(r, where, **kw)
    return held, [x for x in folder.read_metrics(where / "metrics.jsonl") if "loss" in x]


def newest(where):
    return runs.newest(where / "checkpoints")[0]


# --- objectives ----------------------------------------------------------------------------------------------------------
def test_masked_tokens_are_80_10_10(tok):
    o = objectives.Masked(tok)
    ids = torch.randint(len(tokenizers.SPECIAL), len(tok), (2000, 1000))
    out, chosen, _ = o.corrupt(ids, data.rng(1, 2))
    n = chosen.sum().item()
    masked, same = (out[chosen] == tok.mask).sum().item(), (out[chosen] == ids[chosen]).sum().item()
    assert n == 2000 * 150 and torch.equal(out[~chosen], ids[~chosen])
    assert abs(masked / n - 0.8) < 0.003 and abs(same / n - 0.1 - 0.1 / len(o.ordinary)) < 0.003
    again, *_ = o.corrupt(ids, data.rng(1, 2))
    other, *_ = o.corrupt(ids, data.rng(1, 3))
    assert torch.equal(out, again) and not torch.equal(out, other)
    assert not torch.isin(out[chosen & (out != tok.mask)], o.special).any()


def test_special_tokens_are_never_chosen(tok):
    ids = torch.full((4, 10), tok.eos)
    ids[:, 0] = 50
    _, chosen, _ = objectives.Masked(tok, 0.9).corrupt(ids, data.rng(0))
    assert chosen[:, 0].all() and not chosen[:, 1:].any()


def test_causal_labels_stop_at_documents(tok):
    ids, doc = torch.arange(10, 20)[None], torch.tensor([[0] * 4 + [1] * 6])
    batch = objectives.Causal(tok).batch((ids, doc, torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])), None)
    assert batch.labels.tolist() == [11, 12, 13, -100, 15, 16, 17, 18, 19] and batch.count == 8
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4]]


def test_pairs_shift_right_and_ignore_padding(tok):
    batch = objectives.SequenceToSequence(tok).pairs([([40, 41], [50, 51, 52]), ([42], [53])], None)
    assert batch.inputs["decoder_input_ids"].tolist() == [[tok.bos, 50, 51, 52], [tok.bos, 53, tok.eos, tok.pad]]
    assert batch.labels.tolist() == [50, 51, 52, tok.eos, 53, tok.eos, -100, -100] and batch.count == 6
    asked = objectives.Causal(tok).pairs([([40, 41], [50])], None)
    assert asked.labels.tolist() == [-100, -100, -100, 50, tok.eos]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("pieces", [False, True])
def test_the_loss_and_its_gradients_are_torchs_whole_or_in_pieces(monkeypatch, smoothing, pieces):
    monkeypatch.setattr(loss_of, "WHOLE", 22 if pieces else 10**6)  # two places at a time
    made = []
    labels = torch.tensor([1, 2, 3, -100, 5, 6, -100])
    for ours in (True, False):
        torch.manual_seed(0)
        x, w, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((7, 5), (11, 5), (11,)))
        if ours:
            value, plain, _ = loss_of.token_loss(x * 1.0, w, b, labels, smoothing)
        else:
            value = F.cross_entropy(x @ w.T + b, labels, reduction="sum", label_smoothing=smoothing)
            plain = F.cross_entropy(x @ w.T + b, labels, reduction="sum")
        (value / 3).backward()
        made.append([value.detach(), plain.detach(), x.grad, w.grad, b.grad])
    for got, want in zip(*made):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        hits = loss_of.token_loss(x, w, b, labels, smoothing)[2]
    assert int(hits) == int(((x @ w.T + b).argmax(-1) == labels).sum())


def test_the_loss_never_holds_all_scores_in_float32(monkeypatch):
    seen = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(t))
            return out

    monkeypatch.setattr(loss_of, "WHOLE", 4096)
    model = qkv.create("gpt-nano", vocab=1024, length=64, dim=8, heads=2, layers=1)
    ids = torch.randint(0, 1024, (4, 64))
    with Sizes():
        model(input_ids=ids, labels=ids.flatten())["loss"].backward()
    assert max(seen) < 4 * 64 * 1024 / 4, "a tensor of a quarter of all scores"


def test_float32_by_another_product_is_taken_only_where_it_is_accurate_and_faster(monkeypatch):
    model = qkv.create("gpt-nano")
    gains = iter([None, 0.9, 1.5])
    monkeypatch.setattr(machine, "fast_bf16", lambda device="cpu": False)
    monkeypatch.setattr(machine, "medium_gain", lambda *a: next(gains))
    assert [machine.settle("fast", model, 64)[1] for _ in range(3)] == ["highest", "highest", "medium"]
    assert machine.settle("auto", model, 64, before="medium")[:2] == (False, "medium"), "a resumed run multiplies as it did"
    assert machine.settle("exact", model, 64)[:2] == (False, "highest")
    with pytest.raises(ValueError, match="this processor has no bfloat16"):
        machine.settle("bf16", model, 64)
    monkeypatch.setattr(machine, "fast_bf16", lambda device="cpu": True)
    assert machine.settle("auto", model, 64)[0] and machine.settle("bf16", model, 64)[0]


def test_the_error_of_a_product_is_told_from_that_of_float32(monkeypatch):
    assert machine.error_of("highest") < machine.ACCURATE / 2
    real = torch.set_float32_matmul_precision
    monkeypatch.setattr(machine, "error_of", lambda how, device="cpu": 2e-3 if how == "medium" else 2e-7)
    assert machine.medium_gain([(64, 64)], 64) is None
    monkeypatch.setattr(machine, "error_of", lambda how, device="cpu": 2e-7)
    assert machine.medium_gain([(64, 64)], 64) > 0 and torch.get_float32_matmul_precision() == "highest"
    assert real is torch.set_float32_matmul_precision


def test_a_step_that_does_not_fit_says_what_would(source, monkeypatch):
    model = qkv.create("gpt-nano")
    each, need = account.activation_bytes(model), account.training_bytes(model)
    monkeypatch.setattr(assemble.runtime, "free_memory", lambda: need + 3 * each + 1)
    assemble.fits(model, 3, torch.device("cpu"), "batch")
    with pytest.raises(ValueError, match=r"train.batch=4: a step needs about .* batch=3 would fit"):
        assemble.fits(model, 4, torch.device("cpu"), "batch")
    monkeypatch.setattr(assemble.runtime, "free_memory", lambda: need)
    with pytest.raises(ValueError, match="not one row fits"):
        assemble.fits(model, 4, torch.device("cpu"), "batch")


def test_a_profile_accounts_for_the_steps_and_counts_flops(source, tmp_path):
    lines = []
    show = types.SimpleNamespace(
        **{n: lambda *a: None for n in ("begin", "step", "evaluated", "sample", "note", "end")}, report=lines.extend
    )
    r = make_recipe(source, steps=9)
    loop.train(r, tmp_path, show=show, profile=True)
    text = "\n".join(lines)
    assert "4 steps" in text and "backward" in text and "waiting for data" in text and "MFU" in text
    model = assemble.assemble(r).model
    per_token = 3 * sum(account.flops(model).values())
    told = float(re.search(r"([\d.,]+) MFLOPs a token", text)[1].replace(",", "")) * 1e6
    assert told == pytest.approx(per_token, rel=0.15)


def test_an_objective_that_does_not_fit_is_refused(tok):
    config = lambda name: qkv.preset(name)
    for name, preset, paired, reason in (
        ("masked", "gpt-nano", False, "needs the topology Encoder; this model is of Decoder, which carries causal"),
        ("causal", "bert-nano", False, "this model is of Encoder"),
        ("seq2seq", "t5-nano", False, "reads pairs of texts"),
        ("auto", "bert-nano", True, "reads running text, not pairs"),
        ("causl", "gpt-nano", False, "Did you mean 'causal'"),
    ):
        with pytest.raises(ValueError, match=reason):
            objectives.make(name, config(preset), tok, paired)


# --- optimisers ----------------------------------------------------------------------------------------------------------
def test_only_matrices_decay_and_muon_takes_those_in_blocks():
    model = qkv.create("gpt-nano", **SMALL, vocab=50)
    adam = optim.make(model, weight_decay=0.1).members[0]
    decay = {g["weight_decay"]: g["params"] for g in adam.param_groups}
    assert all(p.ndim >= 2 for p in decay[0.1]) and all(p.ndim < 2 for p in decay[0.0])
    assert sum(len(p) for p in decay.values()) == len(list(model.parameters()))
    both = optim.make(model, "muon")
    inner = {id(p) for g in both.members[1].param_groups for p in g["params"]}
    assert inner == {id(p) for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2}


def test_muon_steps_are_nearly_orthogonal():
    m = torch.randn(3, 64, 32)
    values = torch.linalg.svdvals(optim.orthogonal(m).float())
    assert values.min() > 0.4 and values.max() < 1.4
    wide = torch.linalg.svdvals(optim.orthogonal(m.mT).float())
    assert wide.min() > 0.4 and wide.max() < 1.4
    p = torch.nn.Parameter(torch.randn(16, 16))
    p.grad = torch.randn(16, 16)
    before = p.detach().clone()
    optim.Muon([p], lr=0.1).step()
    torch.testing.assert_close((before - p.detach()) / 0.1, optim.orthogonal(p.grad[None])[0].float(), rtol=0.05, atol=0.05)


def test_schedules():
    f = lambda name, step, done: optim.factor(name, step, done, warmup=10)
    assert f("cosine", 0, 0) == 0.1 and f("cosine", 9, 0) == 1.0 and f("cosine", 99, 1.0) == pytest.approx(0.1)
    assert f("inverse_sqrt", 39, 0.5) == 0.5 and f("linear", 50, 0.75) == 0.25
    assert f("constant", 50, 0.5) == 1.0 and f("constant", 50, 0.9) == pytest.approx(0.5)
    paper = lambda s: 512**-0.5 * min(s**-0.5, s * 4000**-1.5)  # section 5.3
    ours = lambda s: optim.factor("inverse_sqrt", s - 1, 0, 4000)
    for s in (1, 100, 4000, 20000):
        assert ours(s) / ours(4000) == pytest.approx(paper(s) / paper(4000))


# --- the loop ------------------------------------------------------------------------------------------------------------
def test_accumulation_gives_the_gradient_of_the_large_batch(source, tmp_path):
    _, one = train(make_recipe(source, batch=8, steps=4), tmp_path / "a")
    _, two = train(make_recipe(source, batch=4, accumulate=2, steps=4), tmp_path / "b")
    for a, b in zip(one, two):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-5) and a["norm"] == pytest.approx(b["norm"], rel=2e-4)


def test_a_run_learns_and_leaves_everything_behind(source, tmp_path):
    held, steps = train(make_recipe(source, steps=60, lr=3e-3), tmp_path / "run")
    assert steps[-1]["loss"] < 0.75 * steps[0]["loss"] and held["bits_per_byte"] > 0
    run = tmp_path / "run"
    assert recipe.resolve(recipe.load(run / "recipe.toml")) == make_recipe(source, steps=60, lr=3e-3)
    assert "## step 60" in (run / "samples.md").read_text()
    model, tokenizer = qkv.load(newest(run)), tokenizers.load(newest(run))
    assert tokenizer.decode(tokenizer.encode("line 3")) == "line 3" and len(tokenizer) == model.config.vocab
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(newest(run))  # a checkpoint is a published folder
    ids = torch.arange(8)[None]
    torch.testing.assert_close(theirs(ids).logits, model(ids)["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
def test_resuming_is_bit_for_bit(source, tmp_path, optimizer):
    more = {"model": {"dropout": 0.1, "attn_dropout": 0.1}, "optimizer": optimizer, "keep": 9}
    _, whole = train(make_recipe(source, **more), tmp_path / "whole")
    where = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", where)
    for late in ("step-00000012", "step-00000008"):
        shutil.rmtree(where / "checkpoints" / late)
    assert newest(where).name == "step-00000004"
    _, resumed = train(make_recipe(source, **more), where, resume=newest(where))
    strip = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    assert strip(resumed) == strip(whole)
    for file in ("model.safetensors", "optimizer.safetensors"):
        a, b = read_tensors(newest(where) / file), read_tensors(newest(tmp_path / "whole") / file)
        assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "preset,extra",
    (
        ("bert-nano", {}),
        ("transformer-nano", {"source": "task:reverse", "count": 200}),
        ("gpt-nano", {"source": "task:copy", "count": 200}),
    ),
)
def test_other_objectives_train_and_resume(source, tmp_path, preset, extra):
    length = {"length": 32} if extra else {}
    r = make_recipe(source, preset, model={"hidden": 64, "scaled": False} | length, data_=extra, steps=8, keep=9)
    _, whole = train(r, tmp_path / "a")
    assert whole[-1]["loss"] < whole[0]["loss"]
    shutil.rmtree(tmp_path / "a/checkpoints/step-00000008")
    _, again = train(r, tmp_path / "a", resume=newest(tmp_path / "a"))
    assert [x["loss"] for x in again] == [x["loss"] for x in whole]


def test_a_loss_that_is_not_finite_is_skipped_and_five_stop_the_run(source, tmp_path, monkeypatch):
    original, seen = objectives.Causal.loss, []

    def broken(bad):
        def loss(self, model, batch):
            out = original(self, model, batch)
            if torch.is_grad_enabled():
                seen.append(1)
                if len(seen) in bad:
                    out.value = out.value * float("nan")
                    out.metrics["loss"] = out.metrics["loss"] * float("nan")
            return out

        return loss

    monkeypatch.setattr(objectives.Causal, "loss", broken({3}))
    _, steps = train(make_recipe(source), tmp_path / "a")
    assert steps[2]["loss"] != steps[2]["loss"] and steps[-1]["loss"] == steps[-1]["loss"] and len(steps) == 12
    assert all(torch.isfinite(t).all() for t in read_tensors(newest(tmp_path / "a") / "model.safetensors").values())
    seen.clear()
    monkeypatch.setattr(objectives.Causal, "loss", broken(set(range(6, 99))))
    with pytest.raises(loop.Diverged, match=r"five times in a row.*step 4 .*lr="):
        train(make_recipe(source), tmp_path / "b")
    assert newest(tmp_path / "b").name <= "step-00000008"
    assert all(torch.isfinite(t).all() for t in read_tensors(newest(tmp_path / "b") / "model.safetensors").values())


def test_a_full_disk_keeps_the_old_checkpoint(source, tmp_path, monkeypatch):
    monkeypatch.setenv("QKV_FAULT", "save:8:full")  # inside the second save
    runs.VISITS.clear()
    _, steps = train(make_recipe(source, keep=9), tmp_path / "a")
    names = sorted(p.name for p in (tmp_path / "a/checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000012"] and len(steps) == 12


def test_the_librarys_own_error_is_a_full_disk_too(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from qkv.checkpoints import files

    def full(*args, **kw):
        raise SafetensorError("IoError: No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})


def test_damaged_checkpoints_are_passed_over_or_refused(source, tmp_path):
    train(make_recipe(source, keep=9), tmp_path / "a")
    folder_ = tmp_path / "a/checkpoints"
    file = folder_ / "step-00000012/optimizer.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    path, notes = runs.newest(folder_)
    assert path.name == "step-00000008" and "SHA-256" in notes[0]
    for p in folder_.iterdir():
        (p / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint of this run is whole"):
        runs.newest(folder_)


def command(*words, **env):
    return subprocess.Popen([sys.executable, "-m", "qkv", *map(str, words)], env=os.environ | {"OMP_NUM_THREADS": "1"} | env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


WORDS = ("gpt-nano", "tokenizer=char", "dim=32", "layers=2", "heads=2", "length=16", "batch=4", "threads=1", "precision=exact", "eval_every=1000",
         "sample_every=1000", "sample_tokens=4", "warmup=2", "--quiet")  # fmt: skip


@pytest.mark.parametrize("kind", (signal.SIGINT, signal.SIGTERM))
def test_signals_save_and_leave_cleanly(source, tmp_path, kind):
    p = command("train", *WORDS, f"data={source}", "steps=100000")
    metrics = None
    for _ in range(600):
        metrics = next(iter(Path(os.environ["QKV_RUNS"]).glob("*/metrics.jsonl")), None)
        if metrics and metrics.read_text().count("\n") > 20:
            break
        time.sleep(0.1)
    p.send_signal(kind)
    out, _ = p.communicate(timeout=60)
    assert p.returncode == 0, out
    run = folder.runs()[0]
    last = folder.read_metrics(run / "metrics.jsonl")[-1]["step"]
    assert newest(run).name == f"step-{last:08d}"
    p = command("train", "last", f"steps={last + 5}", "--quiet")
    out, _ = p.communicate(timeout=120)
    assert p.returncode == 0 and newest(run).name == f"step-{last + 5:08d}", out


@pytest.mark.parametrize("words", (WORDS, ("bert-nano", "hidden=64", *WORDS[1:])), ids=("causal", "masked"))
def test_two_ranks_give_the_losses_of_one(source, tmp_path, words):
    losses = []
    for ranks in (1, 2):
        p = command(
            "train", *words, f"data={source}", "steps=6", *(["--ranks", "2"] if ranks == 2 else []), QKV_RUNS=str(tmp_path / f"r{ranks}")
        )
        out, _ = p.communicate(timeout=180)
        assert p.returncode == 0, out
        (metrics,) = (tmp_path / f"r{ranks}").glob("*/metrics.jsonl")
        losses.append([x["loss"] for x in folder.read_metrics(metrics) if "loss" in x])
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_shares_of_a_batch_add_up_to_it(tok):
    torch.manual_seed(0)
    rows = (torch.randint(10, 200, (5, 16)), None, None)
    pairs = [([40, 41], [50, 51, 52]), ([42], [53]), ([44], [55, 56])]
    gpt = qkv.create("gpt-nano", **SMALL, vocab=300).double()
    bert = qkv.create("bert-nano", **SMALL, hidden=64, vocab=300).double()
    both = qkv.create("transformer-nano", **SMALL, hidden=64, vocab=300).double()
    cases = [
        (gpt, objectives.Causal(tok), objectives.Causal(tok).batch(rows, None)),
        (bert, objectives.Masked(tok), objectives.Masked(tok).batch(rows, data.rng(1))),
        (both, objectives.SequenceToSequence(tok), objectives.SequenceToSequence(tok).pairs(pairs, None)),
        (gpt, objectives.Causal(tok), objectives.Causal(tok).pairs(pairs, None)),
    ]
    for model, objective, batch in cases:
        for world in (2, 7):  # more ranks than rows, too
            parts = [batch.share(r, world) for r in range(world)]
            assert sum(p.count for p in parts) == batch.count
            total = sum(objective.loss(model, p).value for p in parts)
            torch.testing.assert_close(total, objective.loss(model, batch).value, rtol=0, atol=1e-3)


def test_bfloat16_learns_as_float32_does(source, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "fast_bf16", lambda device="cpu": True)  # emulated where the processor has none
    _, exact = train(make_recipe(source, steps=40, lr=3e-3), tmp_path / "a")
    _, short = train(make_recipe(source, steps=40, lr=3e-3, precision="bf16"), tmp_path / "b")
    assert short[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.01) and short[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.05)
    assert short[-1]["loss"] != exact[-1]["loss"]


@pytest.mark.slow
def test_compiled_pairs_of_many_shapes_make_few_graphs(monkeypatch):
    import torch._dynamo.testing

    counter = torch._dynamo.testing.CompileCounter()
    monkeypatch.setattr(torch, "compile", lambda f, **k: torch._dynamo.optimize(counter, **k)(f))
    model = loop.compiled(qkv.create("transformer-nano", start=1).eval(), varied=True)
    for a, b in ((2, 5), (3, 9), (5, 7), (4, 12), (7, 3), (6, 6)):
        ids = torch.randint(3, 50, (a, b))
        model(input_ids=ids, decoder_input_ids=ids[:, : b // 2 + 1], labels=ids[:, : b // 2 + 1].flatten())
    assert counter.frame_count <= loop.GRAPHS


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_an_eager_one(source, tmp_path):
    _, eager = train(make_recipe(source), tmp_path / "a")
    _, compiled = train(make_recipe(source, compile=True), tmp_path / "b")
    assert [x["loss"] for x in compiled] == pytest.approx([x["loss"] for x in eager], abs=1e-4)


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(source, tmp_path):
    """20 kills, half of them inside a save: the resumed curve is that of the uninterrupted run, bit for bit."""
    steps, words = 60, [*WORDS, f"data={source}", "steps=60", "save_every=3", "seed=7"]
    p = command("train", *words, QKV_RUNS=str(tmp_path / "whole"))
    assert p.wait(120) == 0
    curve = lambda root: [(x["step"], x["loss"], x["norm"]) for x in folder.read_metrics(next(root.glob("*/metrics.jsonl"))) if "loss" in x]
    want, root, kills = curve(tmp_path / "whole"), tmp_path / "cut", 0
    random = data.rng(11)
    for i in range(20):
        again = folder_of(root)
        before = newest_step(again)
        env = {"QKV_RUNS": str(root)}
        if i % 2:
            env["QKV_FAULT"] = f"save:{int(random.integers(1, 11))}:kill"
        p = command("train", *([again] if again else words), *(["--quiet"] if again else []), **env)
        if not i % 2:
            start = time.monotonic()
            while time.monotonic() - start < 60 and newest_step(folder_of(root)) <= before and p.poll() is None:
                time.sleep(0.01)
            time.sleep(float(random.random()) * 0.05)
            p.kill()
        p.communicate()
        kills += p.returncode == -signal.SIGKILL
        assert newest_step(folder_of(root)) >= before
        with contextlib.suppress(StopIteration):
            rows = curve(root)
            assert rows == want[: len(rows)]
        if newest_step(folder_of(root)) == steps:
            break
    p = command("train", folder_of(root), "--quiet", QKV_RUNS=str(root))
    assert p.wait(120) == 0 and curve(root) == want and kills >= 10


def folder_of(root):
    found = list(root.glob("*/checkpoints/step-????????/manifest.json"))
    return found[0].parents[2] if found else None


def newest_step(where):
    if where is None:
        return 0
    path, _ = runs.newest(where / "checkpoints")
    return int(path.name[5:]) if path else 0


# --- recipes -------------------------------------------------------------------------------------------------------------
def test_recipes_round_trip_and_refuse(tmp_path):
    r = make_recipe("x.txt")
    (tmp_path / "r.toml").write_text(recipe.dumps(r))
    assert recipe.resolve(recipe.load(tmp_path / "r.toml")) == r
    raw = lambda **kw: {"model": {"preset": "gpt-nano"}, "data": {}, "train": {}} | kw
    for section, reason in (
        ({"train": {"stps": 3}}, r"\[train\] has no key 'stps'. Did you mean 'steps'"),
        ({"train": {"steps": "many"}}, "train.steps='many': must be a whole number"),
        ({"train": {"lr": -1.0}}, "train.lr=-1.0: must be greater than 0"),
        ({"train": {"precision": "fp8"}}, "must be one of auto, exact, fast, bf16"),
        ({"data": {"holdout": 2.0}}, "must be between 0 and 1"),
        ({"model": {}}, "needs preset"),
    ):
        with pytest.raises(ValueError, match=reason):
            recipe.resolve(raw(**section))
    (tmp_path / "bad.toml").write_text("[modle]\npreset = 1\n")
    with pytest.raises(recipe.RecipeError, match="Did you mean 'model'"):
        recipe.load(tmp_path / "bad.toml")
    for path in recipe.shipped().values():
        recipe.resolve(recipe.load(path))


def test_metrics_are_cut_back_to_the_resumed_step(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(5)) + '{"step": 9, "lo')
    folder.Metrics(path, resume_at=2).close()
    assert [r["step"] for r in folder.read_metrics(path)] == [0, 1, 2]
