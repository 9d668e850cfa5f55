"""What the benchmarks share: rivals of one shape and the same random weights, taking turns, and a table of ratios."""

import importlib.util
import statistics
import sys
import time
from pathlib import Path


def present(*names):
    return all(importlib.util.find_spec(n) is not None for n in names)


def need(*names):
    """Leaves with one sentence where a rival is not installed."""
    missing = [n for n in names if not present(n)]
    if missing:
        sys.exit(f"the rivals need {', '.join(missing)}: pip install 'qkv[bench]'")


def publish(model, where, vocab):
    """Saves a transformers model with a tokenizer of made-up words t0, t1 ..., so that converters accept the folder."""
    from tokenizers import Tokenizer
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(where)
    words = Tokenizer(kinds.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0", bos_token="t1", eos_token="t2", pad_token="t0").save_pretrained(where)
    return where


def converted(folder):
    """The same model as CTranslate2 reads it."""
    import ctranslate2

    out = Path(f"{folder}-ct2")
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(out))
    return str(out)


def race(runners, rounds, unit, base="qkv"):
    """runners: {name: function that works and returns how many units it did}. They take turns; printed are the medians of units a
    second, and each rival's ratio to the fastest of ours (those whose name begins with `base`). Returns the medians."""
    speeds = {name: [] for name in runners}
    for i in range(rounds + 1):
        for name, work in runners.items():
            began = time.perf_counter()
            done = work()
            if i:
                speeds[name].append(done / (time.perf_counter() - began))
    medians = {name: statistics.median(s) for name, s in speeds.items()}
    for name, speed in medians.items():
        spread = f"{min(speeds[name]):,.1f} to {max(speeds[name]):,.1f}"
        print(f"    {name:24s} {speed:10,.1f} {unit}  ({spread})", flush=True)
    return medians


def ratio(medians, ours, *rivals):
    for rival in rivals:
        if rival in medians and ours in medians:
            print(f"    {ours} is {medians[ours] / medians[rival]:.2f}x {rival}", flush=True)


def bandwidth(threads):
    """GB a second that this machine reads from memory."""
    import torch

    x = torch.ones(1 << 26)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        x.sum()
        best = max(best, x.nbytes / (time.perf_counter() - began) / 1e9)
    return best
