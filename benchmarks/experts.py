"""Do experts pay? A decoder whose every other feed-forward layer is 8 experts (Switch, 2022) beside its dense twin: as many FLOPs a
token, the same data, order, seeds and steps; held-out loss, time, and how evenly the experts are used.

    QKV_DATA=... python benchmarks/experts.py [--steps 1500] [--seeds 1] [--experts 8]
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

import qkv
from qkv.checkpoints import runs
from qkv.core import Experts
from qkv.models import account
from qkv.training import assemble, folder, loop, recipe


def train(ffn, a, seed, where):
    raw = {
        "model": {"preset": "gpt-nano", "dim": 128, "layers": 4, "heads": 4, "hidden": 512, "length": 128, "position": "rope", "ffn": ffn},
        "data": {"source": "tinyshakespeare", "tokenizer": "bpe", "vocab": 1024, "holdout": 0.1},
        "train": {"steps": a.steps, "batch": 16, "lr": 2e-3, "threads": a.threads, "seed": seed, "eval_every": a.steps // 5,
                  "eval_batches": 1000, "sample_every": 10**9, "save_every": 10**9, "precision": "exact"},
    }  # fmt: skip
    r = recipe.resolve(raw)
    held = loop.train(r, where)
    seconds = folder.read_metrics(where / "metrics.jsonl")[-1].get("seconds") or max(
        x.get("seconds", 0) for x in folder.read_metrics(where / "metrics.jsonl")
    )
    return r, held, seconds


@torch.no_grad()
def balance(model, run):
    """[share of tokens of each expert] and the share that got none, for every layer of experts on held-out text."""
    seen = {}
    for name, m in model.named_modules():
        if isinstance(m, Experts):
            m.chosen.register_forward_hook(lambda _, args, out, name=name: seen.setdefault(name, []).append(out.flatten()))
    model.eval()
    for i in range(0, 64, 16):
        model(**run.objective.batch(run.valid.rows(run.valid.in_order()[i : i + 16]), None).inputs)
    for name, parts in seen.items():
        which = torch.cat(parts)
        counts = torch.bincount(which[which >= 0], minlength=len(model.get_submodule(name).experts)) / len(which)
        print(
            f"    {name}: shares {' '.join(f'{100 * c:.0f}' for c in counts)} %, without an expert {100 * (which < 0).float().mean():.1f} %"
        )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("steps", 1500), ("seeds", 1), ("experts", 8), ("threads", 1)):
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--log")
    a = p.parse_args()
    dense = "plain(relu, bias=False)"
    sparse = [dense, f"experts({a.experts}, relu, bias=False, factor=2.0, balance=0.01, z=0.001)"]
    for seed in range(1, a.seeds + 1):
        losses = {}
        for name, ffn in (("dense", dense), (f"{a.experts} experts", sparse)):
            with tempfile.TemporaryDirectory() as where:
                r, held, seconds = train(ffn, a, seed, Path(where))
                curve = [(x["step"], x["valid_loss"]) for x in folder.read_metrics(Path(where) / "metrics.jsonl") if "valid_loss" in x]
                model = qkv.load(runs.newest(Path(where) / "checkpoints")[0])
                losses[name] = held["loss"]
                count = sum(q.numel() for q in model.parameters())
                per = sum(account.flops(model).values())
                print(
                    f"seed {seed}, {name}: held-out loss {held['loss']:.4f}, {count:,} parameters, {per / 1e6:.2f} MFLOPs a token, {seconds:.0f} s"
                )
                balance(model, assemble.assemble(r))
                if a.log:
                    with open(a.log, "a") as f:
                        f.write(json.dumps({"seed": seed, "model": name, "parameters": count, "flops": per, "curve": curve}) + "\n")
        names = list(losses)
        print(f"seed {seed}: {names[1]} is {losses[names[0]] - losses[names[1]]:+.4f} nats better than {names[0]}", flush=True)


if __name__ == "__main__":
    main()
