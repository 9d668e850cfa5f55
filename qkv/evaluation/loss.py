"""Loss of a model on held-out batches."""

import contextlib
import math

import numpy as np
import torch

ERRORS = ("mse", "mae", "return", "spread", "least", "near")  # which are no shares


@torch.no_grad()
def evaluate(model, objective, batches, device="cpu", autocast=contextlib.nullcontext, total=lambda x: x):
    """{loss, perplexity, accuracy} a target over the batches, and scored, the number of targets. total adds a number up over ranks. The model
    keeps its mode."""
    was, sums, count = model.training, {}, 0
    model.eval()
    for batch in batches:
        with autocast():
            loss = objective.loss(model, batch.to(device))
        count += loss.count
        for k, v in loss.metrics.items():
            sums[k] = sums.get(k, 0.0) + (float(v) if loss.count else 0.0)  # of a rank without a row
    model.train(was)
    count = total(count)
    out = {k: total(v) / max(1, count) for k, v in sorted(sums.items())}
    perplexity = {"perplexity": math.exp(min(50.0, out["loss"]))} if objective.scores_tokens and count else {}
    return {"loss": out.get("loss", math.nan), **perplexity, "accuracy": out.get("accuracy"), "scored": count}


def bits_per_byte(loss, windows, tokenizer):
    """Bits a byte of a text whose mean loss a token is known, in nats. What nothing stands before is not predicted: neither the first token
    of a document nor its bytes count."""
    firsts, times = np.unique(windows.unpredicted(), return_counts=True)
    spared = sum(int(n) * tokenizer.nbytes(i) for i, n in zip(firsts, times))
    predicted = len(windows.shards) - int(times.sum())
    return loss / math.log(2) * predicted / max(1, windows.shards.nbytes - spared)


def figures(held):
    """[(name, what it is in words)] of everything but the loss: ("perplexity", "2,086.11"), ("accuracy", "81.2 %")."""
    out = []
    for name, value in held.items():
        if name in ("loss", "bits_per_byte", "scored") or value is None:
            continue
        words = f"{value:,.2f}" if name == "perplexity" else f"{value:.4f}" if name in ERRORS else f"{100 * value:.1f} %"
        out.append((name, words))
    return out


def of_how_many(held):
    """ " of 2,560 scored", where it is known."""
    return f" of {held['scored']:,} scored" if held.get("scored") else ""


def described(held):
    """Everything but the loss, in words: "perplexity 12.30, accuracy 81.2 %"."""
    return ", ".join(f"{name} {words}" for name, words in figures(held))
