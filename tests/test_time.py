"""The loop over time: what is scaled, clipped, accumulated, evaluated, stopped, kept and put back, at every step."""

import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
from topologies import answer, example, small

from qkv import data, models, objectives
from qkv.checkpoints import files
from qkv.core import Experts
from qkv.data import shards
from qkv.data import tokenizer as tokenizers
from qkv.data.examples import Example
from qkv.objectives.tasks import TASKS
from qkv.training import folder, loop, optim, recipe

TEXT = "".join(f"line {i}: {i * i} is the square of {i}.\n" for i in range(300))
PAIRS = [(" ".join("abcdefgh"[: 2 + i % 7]), " ".join("hgfedcba"[: 1 + i % 5])) for i in range(60)]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def recipe_of(source, preset="gpt-nano", settings=None, **train):
    model = {"preset": preset, "dim": 16, "layers": 1, "heads": 2, "length": 16}
    fixed = {"batch": 4, "threads": 1, "precision": "exact", "warmup": 0, "eval_every": 1000, "sample_every": 1000, "save_every": 1000}
    raw = {"model": model, "data": {"source": str(source), "tokenizer": "char", **(settings or {})}, "train": fixed | train}
    return recipe.resolve(raw)


class Recorded:
    """Looks over the optimiser's shoulder: at each step its learning rates, gradients, and weights before and after."""

    def __init__(self, monkeypatch):
        self.steps, make = [], optim.make

        def watched(model, *args, **kwargs):
            self.model, inner = model, make(model, *args, **kwargs)
            self.optimizer, step = inner, inner.step

            def recorded():
                rates = [g["lr"] / g["base"] for o in inner.members for g in o.param_groups]
                gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                self.steps.append({"rates": rates, "gradients": gradients})
                step()

            inner.step = recorded
            return inner

        monkeypatch.setattr(optim, "make", watched)

    def norm(self, i):
        return torch.stack([g.norm() for g in self.steps[i]["gradients"].values()]).norm().item()


def run(r, where, **more):
    where.mkdir(exist_ok=True)
    held = loop.train(r, where, **more)
    return held, folder.read_metrics(where / "metrics.jsonl")


def wanted(schedule, step, done, warmup):
    """The schedules as their papers and this project's documentation state them, written independently."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return (
        rise
        * {
            "cosine": 0.1 + 0.9 * math.cos(math.pi * done / 2) ** 2,
            "linear": 1 - done,
            "inverse_sqrt": min(1.0, math.sqrt(max(1, warmup) / (step + 1))),
            "constant": 1.0 if done <= 0.8 else (1 - done) / 0.2,
        }[schedule]
    )


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("schedule", optim.SCHEDULES)
def test_the_learning_rate_of_every_step(text, tmp_path, monkeypatch, schedule, warmup):
    seen = Recorded(monkeypatch)
    _, rows = run(recipe_of(text, steps=12, schedule=schedule, warmup=warmup, lr=3e-3, layer_decay=0.5), tmp_path / "r")
    logged = [x["lr"] for x in rows if "lr" in x]
    for i, step in enumerate(seen.steps):
        scale = wanted(schedule, i, i / 12, warmup)
        assert step["rates"] == pytest.approx([scale] * len(step["rates"]), rel=1e-9)
        assert logged[i] == pytest.approx(3e-3 * scale, rel=1e-9)
    assert len(seen.steps) == 12 and len({round(x, 12) for x in logged}) > 2


def test_the_learning_rate_goes_by_the_clock_where_seconds_end_the_run(text, tmp_path, monkeypatch):
    seen, now = Recorded(monkeypatch), [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    factor = optim.factor
    monkeypatch.setattr(optim, "factor", lambda *a: (now.__setitem__(0, now[0] + 10), factor(*a))[1])
    run(recipe_of(text, seconds=95, steps=None, schedule="linear"), tmp_path / "r")
    assert [s["rates"][0] for s in seen.steps] == pytest.approx([1 - 10 * i / 95 for i in range(10)])


@pytest.mark.parametrize("clip", [0.05, 0.0, 1e6])
def test_gradients_are_clipped_to_a_norm(text, tmp_path, monkeypatch, clip):
    seen = Recorded(monkeypatch)
    _, rows = run(recipe_of(text, steps=3, clip=clip), tmp_path / "r")
    for i, row in enumerate(x for x in rows if "norm" in x):
        assert row["norm"] > 0.05
        assert seen.norm(i) == pytest.approx(min(row["norm"], clip) if clip else row["norm"], rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_accumulated_passes_weigh_by_their_targets(tmp_path, monkeypatch, accumulate):
    """Passes of unequal numbers of targets: the gradient is that of the mean over all targets, worked out here in one go."""
    (tmp_path / "a").write_text("\n".join(a for a, _ in PAIRS))
    (tmp_path / "b").write_text("\n".join(b for _, b in PAIRS))
    settings = {"target": str(tmp_path / "b"), "valid": str(tmp_path / "a"), "valid_target": str(tmp_path / "b")}
    seen = Recorded(monkeypatch)
    batches, inner = [], loop.batches_of
    monkeypatch.setattr(loop, "batches_of", lambda run_, step, *a: (out := inner(run_, step, *a), batches.append((run_, step, out)))[0])
    r = recipe_of(tmp_path / "a", "transformer-nano", settings, steps=1, tokens=24, accumulate=accumulate, clip=0.0)
    _, rows = run(r, tmp_path / "r")
    run_, _, passes = next(b for b in batches if b[1] == 0)
    assert len(passes) == accumulate and (accumulate == 1 or len({b.count for b in passes}) > 1)
    torch.manual_seed(1)
    model = models.build(run_.model.config)
    again = loop.assemble(r)  # the weights that the run began with
    model.load_state_dict(again.model.state_dict())
    total = 0.0
    for b in passes:
        scores = model.eval()(**b.inputs)["logits"].flatten(0, 1)
        total = total + torch.nn.functional.cross_entropy(scores, b.labels, ignore_index=-100, reduction="sum")
    mean = total / sum(b.count for b in passes)
    mean.backward()
    assert next(x["loss"] for x in rows if "loss" in x) == pytest.approx(mean.item(), rel=1e-5)
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(seen.steps[0]["gradients"][name], p.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_one_step_of_each_optimizer_by_hand(name):
    """AdamW (Loshchilov and Hutter, 2019, algorithm 2) with torch's own as oracle; decay of matrices alone; betas in their places."""
    torch.manual_seed(0)
    model = models.build(models.preset("gpt-nano", dim=16, layers=1, heads=2))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    gradients = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    mine = optim.make(model, name, lr=0.01, weight_decay=0.3, betas=(0.8, 0.9), muon_lr=0.02)
    for _ in range(2):
        for n, p in model.named_parameters():
            p.grad = gradients[n].clone()
        mine.step()
    muon = 0
    for n, p in model.named_parameters():
        if name == "muon" and p.ndim == 2 and "blocks." in n:
            step = (before[n] * (1 - 0.02 * 0.3) ** 2 - p) / 0.02
            assert 0.5 < torch.linalg.matrix_norm(step, 2) / max(1.0, p.shape[0] / p.shape[1]) ** 0.5 < 2.6
            muon += 1
            continue
        twin = before[n].clone().requires_grad_()
        oracle = torch.optim.AdamW([twin], lr=0.01, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.3 if p.ndim >= 2 else 0.0)
        for _ in range(2):
            twin.grad = gradients[n].clone()
            oracle.step()
        torch.testing.assert_close(p.detach(), twin.detach(), rtol=1e-5, atol=1e-6)
    assert (muon > 0) == (name == "muon")


def test_what_is_done_when(text, tmp_path):
    """By steps: evaluated, sampled and saved at the multiples asked for, and at the end."""

    class Show(loop.Quiet):
        def __init__(self):
            self.held, self.samples = [], []

        def evaluated(self, step, held):
            self.held.append(step)

        def sample(self, step, text):
            self.samples.append(step)

    show = Show()
    saved, save = [], loop.runs.save
    loop.runs.save = lambda where, step, *a: (saved.append(step), save(where, step, *a))[1]
    try:
        run(recipe_of(text, steps=11, eval_every=3, sample_every=4, save_every=5, sample_tokens=2, keep=2), tmp_path / "r", show=show)
    finally:
        loop.runs.save = save
    assert show.held == [0, 3, 6, 9, 11] and show.samples == [4, 8, 11] and saved == [5, 10, 11]
    assert sorted(p.name for p in (tmp_path / "r" / "checkpoints").iterdir()) == ["step-00000010", "step-00000011"]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_checkpoints_are_kept(text, tmp_path, keep):
    run(recipe_of(text, steps=5, save_every=1, keep=keep), tmp_path / "r")
    kept = sorted(p.name for p in (tmp_path / "r" / "checkpoints").iterdir())
    assert kept == [f"step-{i:08d}" for i in range(6 - keep, 6)]


def labelled(tmp_path):
    (tmp_path / "films.tsv").write_text("".join(f"film {i} was {'good' if i % 2 else 'bad'}\t{i % 2}\n" for i in range(60)))
    return tmp_path / "films.tsv"


def scripted(monkeypatch, scores):
    """A task whose held-out accuracy is what is written here; the weights at each evaluation are kept."""
    weights, left = [], iter(scores)

    def judge(model, *a, **k):
        weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return {"loss": 1.0, "accuracy": next(left)}, []

    monkeypatch.setattr(loop, "judge", judge)
    return weights


@pytest.mark.parametrize(("scores", "patience", "stops_at", "best"), [
    ((0.1, 0.5, 0.7, 0.6, 0.7, 0.2, 0.9), 3, 5, 2),  # 0.6, 0.7 and 0.2 are no better than the first 0.7
    ((0.1, 0.5, 0.4, 0.6, 0.9, 0.8, 0.1), 2, 6, 4),
    ((0.9, 0.5, 0.4, 0.3, 0.2), 3, 4, 1),  # an untrained model is not kept, however good
])  # fmt: skip
def test_patience_ends_a_run_and_the_best_weights_are_put_back(tmp_path, monkeypatch, scores, patience, stops_at, best):
    weights = scripted(monkeypatch, [*scores, 0.0])
    model = {"preset": "bert-nano", "dim": 16, "layers": 1, "heads": 2, "length": 32}
    settings = {"source": str(labelled(tmp_path)), "tokenizer": "char"}
    train = {"task": "classification", "steps": 40, "batch": 4, "eval_every": 1, "patience": patience, "threads": 1, "warmup": 0,
             "sample_every": 1000}  # fmt: skip
    r = recipe.resolve({"model": model, "data": settings, "train": train})
    _, rows = run(r, tmp_path / "r")
    assert max(x["step"] for x in rows if "loss" in x) == stops_at
    newest = loop.runs.newest(tmp_path / "r" / "checkpoints")[0]
    end = dict(models.load(newest).named_parameters())
    for name, p in end.items():
        assert torch.equal(p, weights[best][name]), name
    assert any(not torch.equal(p, weights[stops_at][n]) for n, p in end.items())
    restored = [x for x in rows if "restored" in x]
    assert len(restored) == (best != stops_at) and all(x["restored"] == best for x in restored)


def test_a_best_value_is_known_again_after_resuming(tmp_path, monkeypatch):
    model = {"preset": "bert-nano", "dim": 16, "layers": 1, "heads": 2, "length": 32}
    settings = {"source": str(labelled(tmp_path)), "tokenizer": "char"}
    train = {"task": "classification", "batch": 4, "eval_every": 1, "threads": 1, "warmup": 0, "sample_every": 1000, "save_every": 1}
    r = lambda steps: recipe.resolve({"model": model, "data": settings, "train": train | {"steps": steps}})
    weights = scripted(monkeypatch, [0.1, 0.8, 0.3, 0.8, 0.5, 0.4, 0.8])
    run(r(2), tmp_path / "r")
    resume = loop.runs.newest(tmp_path / "r" / "checkpoints")[0]
    run(r(4), tmp_path / "r", resume=resume)
    kept = files.read_tensors(tmp_path / "r" / "best.safetensors")
    assert int(kept["/step"]) == 1 and torch.equal(kept["embed.token.weight"], weights[1]["embed.token.weight"])


# --- dropout -------------------------------------------------------------------------------------------------------------------------


def text_model(preset="gpt-nano", **fields):
    torch.manual_seed(0)
    return models.build(models.preset(preset, dim=16, layers=2, heads=2, **fields))


@pytest.mark.parametrize("preset", ["gpt-nano", "bert-nano", "transformer-nano", "t5-nano", "vit-nano"])
@pytest.mark.parametrize("where", ["dropout", "attn_dropout"])
def test_dropout_acts_in_training_and_only_there(preset, where):
    model = text_model(preset, **{"dropout": 0.0, "attn_dropout": 0.0} | {where: 0.5})
    given = example(model)
    model.eval()
    assert all(torch.equal(a, b) for a, b in zip(answer(model, given, 1).values(), answer(model, given, 2).values(), strict=True))
    model.train()
    first, again, other = (next(iter(answer(model, given, s).values())) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_is_of_what_a_branch_says_not_of_what_it_is_told(p):
    """post(x + drop(f(pre(x)))): of the sum, a share p of places is x itself, the others x + f / (1 - p)."""
    from qkv.core import Residual

    class Says(torch.nn.Module):
        def forward(self, x, ctx):
            assert x is given  # what it reads is whole
            return torch.full_like(x, 3.0)

    torch.manual_seed(0)
    given = torch.randn(40, 50, 16)
    out = Residual(Says(), dropout=p).train()(given, None)
    added = out - given
    gone = added.abs() < 1e-6
    assert gone.float().mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / gone.numel()))
    torch.testing.assert_close(added[~gone], torch.full_like(added[~gone], 3 / (1 - p)), rtol=1e-4, atol=1e-4)


def test_attention_drops_weights_after_the_softmax():
    """One key: the whole weight goes, or is doubled. Many keys: the mean over passes is what is said without dropout."""
    from qkv.core import Attention, Context, Softmax, tokens

    torch.manual_seed(0)
    attention = Attention(16, 2, kernel=Softmax(dropout=0.5)).double().train()
    joined = []
    attention.o.register_forward_pre_hook(lambda m, given: joined.append(given[0]))
    one = torch.randn(500, 1, 16, dtype=torch.float64)
    attention(one, Context(tokens(1)))
    ratio = (joined[0] / attention.v(one)).view(1000, 8)
    assert all(r.allclose(torch.zeros(8).double()) or r.allclose(torch.full((8,), 2.0).double()) for r in ratio)
    assert ratio[:, 0].mean().item() == pytest.approx(1.0, abs=0.16)
    x = torch.randn(3, 9, 16, dtype=torch.float64)
    many = torch.stack([attention(x, Context(tokens(9))) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(many, attention.eval()(x, Context(tokens(9))), rtol=0, atol=0.05)  # its mean is the whole


def test_dropout_differs_from_step_to_step_and_not_between_runs(text, tmp_path, monkeypatch):
    states = []
    for name in ("a", "b"):
        drawn, inner = [], objectives.Causal.loss

        def loss(self, model, batch, drawn=drawn, inner=inner):
            if torch.is_grad_enabled():
                drawn.append(torch.rand(1).item())
            return inner(self, model, batch)

        monkeypatch.setattr(objectives.Causal, "loss", loss)
        run(recipe_of(text, steps=4, accumulate=2), tmp_path / name)
        monkeypatch.setattr(objectives.Causal, "loss", inner)
        states.append(drawn)
    assert states[0] == states[1] and len(states[0]) == len(set(states[0])) == 8


# --- what a fresh model is, and what an epoch reads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["gpt2", "bert-base", "t5-small", "vit-base-16", "transformer-base"])
def test_fresh_weights_have_the_deviations_of_their_papers(preset):
    """normal: 0.02; scaled: outputs of branches / sqrt(2 layers); xavier: sqrt(2 / (in + out)); t5: by fan-in."""
    torch.manual_seed(0)
    cfg = models.preset(preset, layers=2) if preset != "t5-small" else models.preset(preset, layers=2, decoder_layers=2)
    model, checked = models.build(cfg), 0
    tied = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, m in model.named_modules():
        if isinstance(m, torch.nn.Embedding):
            std = {"xavier": cfg.dim**-0.5, "t5": 1.0}.get(cfg.init, 0.02)
        elif isinstance(m, torch.nn.Linear) and id(m.weight) not in tied:
            out, fan = m.weight.shape
            last = name.endswith((".o", ".down"))
            std = {
                "normal": 0.02,
                "scaled": 0.02 / 2 if last else 0.02,
                "xavier": math.sqrt(2 / (fan + out)),
                "t5": (fan * 64) ** -0.5 if name.endswith("f.q") else fan**-0.5,
            }[cfg.init]
            assert m.bias is None or m.bias.abs().max() == 0
        else:
            continue
        if m.weight.numel() > 20_000:
            assert m.weight.std().item() == pytest.approx(std, rel=0.03), name
            checked += 1
    assert checked > 8


def test_the_windows_of_epochs_begin_elsewhere():
    windows = data.Windows(shards.Shards(np.arange(1003), np.array([1003]), 1003), 10, seed=1)
    offsets = [int(windows.epoch(e).min()) for e in range(12)]
    assert len(set(offsets)) > 2 and max(offsets) <= 3
    assert len({tuple(windows.epoch(e)) for e in range(12)}) == 12
    assert all(sorted(windows.epoch(e) - o) == list(range(0, 1000, 10)) for e, o in enumerate(offsets))


def test_the_losses_that_experts_leave_are_part_of_the_loss(text, tmp_path):
    model = text_model(ffn="experts(4)", vocab=300).train()
    objective = objectives.Causal(tokenizers.train("char", [TEXT], 300))
    batch = objective.batch((torch.randint(8, 60, (2, 17)), None, None), None)
    out = model(**batch.inputs, labels=batch.labels)
    assert out["auxiliary"] > 0
    loss = objective.loss(model, batch)
    assert loss.value.item() == pytest.approx((out["loss"] + batch.count * out["auxiliary"]).item(), rel=1e-6)
    router = next(p for n, p in model.named_parameters() if "router" in n)
    (with_it,) = torch.autograd.grad(loss.value, router, retain_graph=True)
    (without,) = torch.autograd.grad(out["loss"], router)
    assert not torch.allclose(with_it, without)


EXPERTS = [n for n in small() if "ffn" in models.fields(models.preset(n))]


@pytest.mark.parametrize("name", EXPERTS)
def test_every_topology_hands_on_what_experts_leave_behind(name):
    try:
        model = models.create(name, ffn="experts(2)").train()
    except ValueError as refused:
        assert "ffn" in str(refused)
        return
    if not any("router" in n for n, _ in model.named_parameters()):
        return  # a topology of convolutions or one that has no feed-forward layers
    out = model(**example(model))
    (by,) = torch.autograd.grad(out["auxiliary"], next(p for n, p in model.named_parameters() if "router" in n))
    assert by.abs().max() > 0
    with torch.no_grad():
        assert "auxiliary" not in model(**example(model))


def with_experts(cfg):
    """The config with experts in every config that is in it, one at a time."""
    for f in dataclasses.fields(cfg):
        if dataclasses.is_dataclass(part := getattr(cfg, f.name)) and "ffn" in models.fields(part):
            with contextlib.suppress(ValueError):  # a stack of convolutions
                yield dataclasses.replace(cfg, **{f.name: dataclasses.replace(part, ffn="experts(2)")})


INNER = [(n, i) for n in small() for i, _ in enumerate(with_experts(models.preset(n)))]


@pytest.mark.parametrize(("name", "place"), INNER)
def test_a_model_hands_on_what_experts_of_its_parts_leave_behind(name, place):
    """Where a model of its own is a part: a tower, a reader of words. One that is frozen for good (Flamingo's eyes) has nothing to hand on."""
    model = models.build(list(with_experts(models.preset(name)))[place]).train()
    if hasattr(model, "trained") and not any("router" in n for n in model.trained()):
        return
    given = example(model)

    def left():
        torch.manual_seed(1)
        if not hasattr(model, "losses"):
            return model(**given)["auxiliary"].item()
        size, noise = model.config.image, torch.zeros(2, model.config.noise)
        pixels, mask = torch.ones(2, 3, size, size), torch.ones_like(given["input_ids"])
        return model.losses(pixels, given["input_ids"], mask, noise, noise)["match"].item()

    before = left()
    for m in model.modules():
        if isinstance(m, Experts):
            m.balance += 1
    assert left() > before + 0.5


class Heavier(torch.nn.Module):
    """A model whose parts leave behind a loss of 5."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.config = model, model.config

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, **given):
        out = self.inner(**given)
        out["auxiliary"] = torch.tensor(5.0)
        return out


def examples_of_tasks(tokenizer):
    """(name, objective, model, batch) of every task on text and every objective of running text."""
    films = [Example(f"film {i}", pair="a b c", label=str(i % 2), where=f"row {i}", more={"choices": ["a", "b c"]}) for i in range(4)]
    words = [Example(["a", "b"], None, ["O", "B-X"], f"row {i}") for i in range(4)]
    asked = [Example("what", "a bb ccc", [(2, "bb")], f"row {i}") for i in range(4)]
    found = {"tagging": words, "answers": asked}
    for name, kind in TASKS.items():
        (topology, output), *_ = kind.outputs.items()
        base = {"Encoder": "bert-nano", "Decoder": "gpt-nano", "EncoderDecoder": "transformer-nano"}[topology]
        labels = ("O", "B-X") if name == "tagging" else ("0", "1")
        model = models.create(base, vocab=len(tokenizer), dim=16, layers=1, heads=2, length=32, pad=tokenizer.pad, output=output, labels=2,
                              label_names=labels, start=tokenizer.bos)  # fmt: skip
        options = {"stride": 2} if name == "answers" else {}
        task = kind(tokenizer, model.config, 32, **options)
        yield name, task, model, task.pairs(task.encode(found.get(name, films)), None)
    rows = torch.randint(8, 40, (3, 17)), None, None
    for name in ("causal", "masked", "contrastive", "detect"):
        base, output = (
            ("gpt-nano", "lm") if name == "causal" else ("bert-nano", {"contrastive": "hidden", "detect": "detect"}.get(name, "lm"))
        )
        model = models.create(base, vocab=len(tokenizer), dim=16, layers=1, heads=2, length=32, pad=tokenizer.pad, output=output)
        objective = objectives.make(name, model.config, tokenizer, False)
        objective.prepare(model)
        yield name, objective, model, objective.batch(rows, data.rng(0))


def test_every_loss_takes_in_what_parts_leave_behind():
    tokenizer = tokenizers.train("char", [TEXT + "abcdefghijklmnopqrstuvwxyz"], 300)
    names = []
    for name, objective, model, batch in examples_of_tasks(tokenizer):
        model.eval()
        whole = lambda m, o=objective: objectives.joint(m, o)
        torch.manual_seed(0)
        plain = objective.loss(whole(model), batch)
        torch.manual_seed(0)
        heavy = objective.loss(whole(Heavier(model)), batch)
        assert heavy.value.item() - plain.value.item() == pytest.approx(5 * batch.count, rel=1e-3), name
        reported = {k: float(v) for k, v in plain.metrics.items() if v is not None}
        if name != "detect":  # whose two losses are reported as one
            assert {k: float(v) for k, v in heavy.metrics.items() if v is not None} == pytest.approx(reported), name
        names.append(name)
    assert set(TASKS) <= set(names)
