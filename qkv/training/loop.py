"""The training loop, to be read in one sitting: recipe -> data -> model -> steps -> checkpoints.

A step: take the step's examples (a function of seed and step), run the passes that it accumulates, divide by the number of targets
of all passes and ranks, clip, step. Everything random is keyed by (seed, step), so a resumed run goes on bit for bit.
"""

import contextlib
import itertools
import math
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from .. import data as data_of
from .. import models, objectives
from ..checkpoints import files, runs, table
from ..data import rng
from ..evaluation.loss import bits_per_byte, evaluate
from ..evaluation.tasks import judge
from ..words import nearest
from . import distributed, folder, machine, optim, recipe
from .assemble import assemble
from .profile import NoProfile, Profile

GRAPHS = 8  # that torch.compile may make of one piece of code


class Diverged(RuntimeError):
    """The loss was not finite five times in a row."""


def batches_of(run, step, rank=0, world=1):
    """The passes of one step for one rank: a function of (seed, step)."""
    t, out = run.recipe.train, []
    for i in range(t.accumulate):
        number = step * t.accumulate + i
        r = rng(t.seed, number, 3)
        if isinstance(run.train, data_of.Pairs):
            batch = run.objective.pairs(run.train.batch(number), r)
        else:
            batch = run.objective.batch(run.train.rows(run.train.starts_of(number * t.batch, t.batch)), r)
        out.append(batch if world == 1 else batch.share(rank, world))  # drawn whole, then shared: ranks change nothing
    return out


def total_steps(run):
    """How many steps the recipe asks for, or None where the clock decides."""
    t = run.recipe.train
    if t.epochs is not None:
        rows = len(run.train)
        if isinstance(run.train, data_of.Pairs):
            per = len(run.train.epoch(0)) / t.accumulate
        else:
            per = rows / (t.batch * t.accumulate)
        steps = max(1, math.ceil(t.epochs * per))
        return min(steps, t.steps) if t.steps else steps
    return t.steps


def train(r, where, *, resume=None, show=None, ready=lambda: None, profile=False):
    """Trains a recipe in the run folder `where` and returns the final held-out metrics.

    resume: checkpoint folder to go on from. show: an object with begin, step, evaluated, sample, note and end (a live panel); see
    cli.panel. profile: say where the time went. ready: called once the run is put together and nothing can be refused any more. SIGINT and SIGTERM end the run after the step in hand, with a checkpoint.
    """
    rank, world = distributed.rank(), distributed.world()
    show = show or Quiet()
    state = {"step": 0, "seconds": 0.0, "tokens": 0, "environment": {}} if resume is None else files.read_json(resume / "state.json")
    run = assemble(r, resume, state["environment"].get("matmul"))
    t, model, device = r.train, run.model, run.device
    trained = objectives.joint(model, run.objective).to(device)  # with what the objective trains beside it
    optimizer = optim.make(trained, t.optimizer, t.lr, t.weight_decay, (t.beta1, t.beta2), t.muon_lr, t.layer_decay)
    names = {p: n for n, p in trained.named_parameters()}
    if resume is not None:
        optimizer.load(files.read_tensors(resume / "optimizer.safetensors"), names)
        beside(trained, files.read_tensors(resume / "objective.safetensors") if trained is not model else {})
        if state.get("data") != run.key:
            show.note("the texts are not those that the run began with: it goes on, but not bit for bit")
        for key, now in environment(t).items():
            if state["environment"].get(key) != now:
                show.note(f"{key} was {state['environment'].get(key)} and is {now}: the run goes on, but not bit for bit")
    steps = total_steps(run)
    if steps is None and t.seconds is None:
        raise recipe.RecipeError("the run has no end: give steps=, epochs= or seconds=")
    if steps is not None and state["step"] >= steps:
        show.note(f"the run is at step {state['step']} already; steps={steps} asks for no more")
    ready()
    metrics = folder.Metrics(where / "metrics.jsonl", state["step"]) if rank == 0 else None
    wrapped = distributed.wrap(trained)
    forward = compiled(wrapped, isinstance(run.train, data_of.Pairs)) if t.compile else wrapped
    autocast = lambda: torch.autocast(device.type, torch.bfloat16) if run.bf16 else contextlib.nullcontext()
    timed = Profile(device) if profile else NoProfile()
    stop = _Stop()
    began, before, bad = time.monotonic(), state["seconds"], 0
    step, tokens, last_saved, held_at = state["step"], state["tokens"], state["step"], -1
    sampled_at = -1 if resume is None else step  # a run that has nothing left to do says nothing new
    best = Best(where / "best.safetensors", run, resume is not None)
    every = {"eval": t.eval_every or best.every, "save": t.save_every, "sample": t.sample_every}
    clock = {"eval": time.monotonic(), "save": time.monotonic(), "sample": time.monotonic()}
    patience = {"eval": min(60.0, (t.seconds or 600) / 6), "save": 120.0, "sample": min(120.0, (t.seconds or 600) / 3)}
    elapsed = lambda: before + time.monotonic() - began
    over = lambda: t.seconds is not None and elapsed() >= t.seconds

    def due(what):
        """Is it time, by steps or by the clock of rank 0?"""
        now = step % every[what] == 0 if every[what] else distributed.agree(time.monotonic() - clock[what] > patience[what])
        if now:
            clock[what] = time.monotonic()
        return now

    def save(again=False):
        nonlocal last_saved
        if rank == 0:
            kept = {"step": step, "seconds": elapsed(), "tokens": tokens, "environment": environment(t), "data": run.key}
            try:
                runs.save(where / "checkpoints", step, lambda f: write(f, run, trained), optimizer.state(names), kept, t.keep, again)
                last_saved = step
            except OSError as e:
                show.note(f"the checkpoint at step {step} could not be written ({e}); the one before it is kept")
        distributed.barrier()

    def check(**more):
        nonlocal held_at
        held_at = step
        if best.metric:
            items = run.valid.pairs
            held, _ = judge(model, run.objective, items, run.tokenizer, device, autocast)
            best.seen(held, model, step)
            held["scored"] = sum(i["wanted"] is not None for i in items)
        else:
            held = evaluate(trained, run.objective, valid_batches(run, t.eval_batches, t.batch), device, autocast, distributed.total)
            told = not isinstance(run.valid, data_of.Pairs) and run.objective.predicts_all
            held["bits_per_byte"] = bits_per_byte(held["loss"], run.valid, run.tokenizer) if told else None
        if rank == 0:
            metrics.evaluated(step, held, **more)
            show.evaluated(step, held)
        return held

    def sample():
        nonlocal sampled_at
        if sampled_at == step:
            return
        sampled_at = step
        if rank == 0:
            from ..generation import sample_text

            with autocast():
                text = sample_text(model, run, t.prompt, t.sample_tokens)
            with open(where / "samples.md", "a", encoding="utf-8") as f:
                f.write(f"## step {step}\n\n{text}\n\n")
            show.sample(step, text)
        distributed.barrier()

    show.begin(run, steps, t.seconds, step)
    for words in run.notes:
        show.note(words)
    held = check() if step == 0 else None
    began = time.monotonic()  # what was evaluated before is no training: one step at least is made, however slow the machine
    clock = dict.fromkeys(clock, began)
    with stop, ThreadPoolExecutor(1) as loader:
        ahead = loader.submit(batches_of, run, step, rank, world)
        trained.train()
        while not (steps is not None and step >= steps) and not distributed.agree(over()):
            if distributed.any(stop.asked):
                break
            with timed("waiting for data"):
                batches = [b.to(device) for b in ahead.result()]
            ahead = loader.submit(batches_of, run, step + 1, rank, world)
            done = max(step / steps if steps else 0.0, elapsed() / t.seconds if t.seconds else 0.0)
            scale = optim.factor(t.schedule, step, done, t.warmup)
            optimizer.scale(scale)
            count = distributed.total(sum(b.count for b in batches))
            total = torch.zeros((), device=device)
            with timed.one(sum(b.tokens for b in batches)):
                for i, batch in enumerate(batches):
                    torch.manual_seed(hash((t.seed, step, i, rank)) & 0xFFFFFFFF)  # dropout
                    with distributed.last(wrapped, i == len(batches) - 1):
                        with timed("forward"), autocast():
                            loss = run.objective.loss(forward, batch)
                        with timed("backward"), autocast():
                            (loss.value * (world / max(1, count) if batch.count else 0.0)).backward()
                    total += loss.metrics["loss"] if batch.count else 0.0
                mean = distributed.total(total.item()) / max(1, count)
                with timed("clipping"):
                    norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), t.clip if t.clip else math.inf, foreach=True).item()
                if math.isfinite(mean) and math.isfinite(norm):
                    with timed("optimizer"):
                        optimizer.step()
                    bad = 0
                else:  # every rank has the same mean and norm, so all skip together
                    bad += 1
                    show.note(f"step {step}: the loss or its gradient is not finite; the step is skipped ({bad} in a row)")
                optimizer.zero_grad()
            step, tokens = step + 1, tokens + distributed.total(sum(b.tokens for b in batches))
            if rank == 0:
                metrics.write(step=step, loss=mean, norm=norm, lr=t.lr * scale, tokens=tokens, seconds=round(elapsed(), 3))
                show.step(step, mean, tokens, elapsed(), t.lr * scale)
            if bad == 5:
                raise Diverged(_advice(where, r, last_saved))
            if due("eval"):
                held = check()
                if best.stale(t.patience):
                    show.note(f"{best.metric} did not get better in {t.patience} evaluations; the run ends, with the best weights")
                    break
            if due("sample"):
                sample()
            if due("save") and not bad:
                save()
    distributed.barrier()
    interrupted = distributed.any(stop.asked)
    if interrupted or not best.metric:
        if last_saved != step or step == 0:
            save()
    else:
        held = check() if held_at != step else held
        best.restore(model)
        save(again=True)
    if not interrupted:
        if best.since and best.step:  # the weights are not those of the last evaluation any more
            show.note(f"the weights of step {best.step} are the best by {best.metric}: they are put back, and kept")
            held = check(restored=best.step)
        elif held_at != step:
            held = check()
        sample()
    if rank == 0:
        metrics.close()
    show.end(interrupted)
    if profile and rank == 0:
        kind = "bfloat16" if run.bf16 else torch.get_float32_matmul_precision().replace("highest", "float32")
        show.report(timed.report(machine.peak(kind, device.type), kind))
    return None if interrupted else held


class Best:
    """The best weights of a fine-tuning run by its task's metric, kept beside the checkpoints. metric: its name, None where the
    objective is no task. every: steps between evaluations, an epoch."""

    def __init__(self, path, run, going_on):
        self.metric = getattr(run.objective, "metric", None)
        self.every = math.ceil(len(run.train.epoch(0)) / run.recipe.train.accumulate) if self.metric else 0
        self.path, self.value, self.since, self.step = path, -math.inf, 0, 0  # since: evaluations after that of `step`, the best
        if self.metric and going_on and path.exists():
            kept = files.read_tensors(path)
            self.value, self.step = kept["/value"].item(), int(kept["/step"])

    def seen(self, held, model, step):
        self.since += 1
        value = held[self.metric] - 1e-9 * min(held["loss"], 1e3)  # of equals, the one with the lower loss
        if step and value > self.value:
            self.since, self.step = (0 if value > self.value + 1e-6 else self.since), step
            self.value = value
            if distributed.rank() == 0:
                facts = {"/value": torch.tensor(self.value, dtype=torch.float64), "/step": torch.tensor(step)}
                files.write_tensors(self.path, {n: p.detach() for n, p in table.parameters(model)[0].items()} | facts)

    def stale(self, patience):
        return bool(patience and self.metric and self.since >= patience)

    def restore(self, model):
        """Puts the best weights back."""
        distributed.barrier()
        if not self.path.exists():  # nothing was trained
            return
        kept = files.read_tensors(self.path)
        with torch.no_grad():
            for name, p in table.parameters(model)[0].items():
                p.copy_(kept[name])


def compiled(model, varied):
    """The model through torch.compile with a bounded number of graphs. varied: batches differ in shape, so sizes are symbols from the
    start; a pass that would need more graphs than GRAPHS runs uncompiled."""
    torch._dynamo.config.recompile_limit = GRAPHS
    return torch.compile(model, dynamic=True if varied else None)


def _advice(where, r, last_saved):
    return (
        f"the loss was not finite five times in a row, so the run was stopped; the last good checkpoint is step {last_saved} in "
        f"{where}/checkpoints. Go on from it with a lower learning rate: qkv train {where} lr={r.train.lr / 3:g}"
    )


def environment(t):
    """What bit-for-bit resuming depends on."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "world": distributed.world(),
            "instructions": torch.backends.cpu.get_cpu_capability(), "matmul": torch.get_float32_matmul_precision()}  # fmt: skip


def beside(trained, given=None):
    """{name: tensor} of what an objective trains beside the model; given: values to set them to."""
    if not isinstance(trained, objectives.Joint):
        return {}
    shared = {id(p) for p in trained.model.parameters()}
    own = {n: p for n, p in trained.beside.named_parameters() if id(p) not in shared}
    with torch.no_grad():
        for name, value in (given or {}).items():
            own[name].copy_(value)
    return own


def write(where, run, trained):
    """The files of a checkpoint: the model, its tokenizer, and what the objective trains beside it."""
    write_model(where, run.model, run.tokenizer)
    if own := beside(trained):
        files.write_tensors(where / "objective.safetensors", own)


def write_model(where, model, tokenizer):
    """The model's files in its published layout, and its tokenizer."""
    raw, tensors = models.published_files(model)
    files.write_json(where / "config.json", raw)
    files.write_tensors(where / "model.safetensors", tensors)
    tokenizer.save(where)


def valid_batches(run, most, rows):
    """At most `most` held-out batches: the first ones of a text, or pairs of all lengths; every rank takes its share of each."""
    rank, world = distributed.rank(), distributed.world()
    if isinstance(run.valid, data_of.Pairs):
        groups = run.valid.in_order(run.objective.fewest)  # sorted by length: of more than `most`, some of every length
        picked = (
            sorted({round(i * (len(groups) - 1) / max(1, most - 1)) for i in range(most)}) if len(groups) > most else range(len(groups))
        )
        batches = (run.objective.pairs(groups[g], rng(0, i)) for i, g in enumerate(picked))
    else:
        batches = itertools.islice(run.objective.held_out(run.valid, rows), most)
    for batch in batches:
        yield batch if world == 1 else batch.share(rank, world)


class _Stop:
    """Turns the first SIGINT or SIGTERM into a wish to stop; the second one stops at once."""

    def __init__(self):
        self.asked, self.old = False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGINT, signal.SIGTERM):
                self.old[s] = signal.signal(s, self._ask)
        return self

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *exc):
        for s, handler in self.old.items():
            signal.signal(s, handler)


class Quiet:
    """A panel that shows nothing."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def known_presets(what):
    """Raises with the nearest name where `what` is no preset."""
    if what not in models.presets():
        raise recipe.RecipeError(
            f"'{what}' is no preset, recipe or run.{nearest(what, [*models.presets(), *recipe.shipped()])} `qkv ls` lists them"
        )
