"""Is pre-training worth it? The same architecture fine-tuned from random weights and from pre-trained ones.

    QKV_DATA=... qkv train recipes/books-mlm.toml data=$QKV_DATA/lm_books/train.jsonl.gz valid=$QKV_DATA/lm_books/valid.jsonl.gz
    QKV_DATA=... python benchmarks/transfer.py masked=runs/books-mlm-... electra=runs/books-electra-... [--tasks sst2,ncbi,cola] [--seeds 3]

Every row is one fine-tuning run: the best epoch by the held-out metric, and that epoch's metric on the test part where there is one.
Random weights use the first run's tokenizer and shape. Rows go to --log as they are made; `--log FILE --show` prints the table of a log.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from qkv import objectives
from qkv.checkpoints import runs
from qkv.data import tokenizer as tokenizers
from qkv.evaluation.tasks import judge
from qkv.training import folder, loop, recipe

DATA = os.environ.get("QKV_DATA", "")
TASKS = {  # metric, task, data, epochs
    "sst2": ("accuracy", "classification", {"source": "sst2"}, 4.0),
    "ncbi": ("f1", "tagging(cut=true)", {"source": "ncbi-disease"}, 3.0),
    "cola": ("mcc", "classification", {"source": f"{DATA}/cls_cola/in_domain_train.tsv.gz", "valid": f"{DATA}/cls_cola/in_domain_dev.tsv",
                                       "text": 4, "label": 2}, 3.0),
}  # fmt: skip


def fine_tune(name, shape, tokenizer, init, seed, lr):
    """{held, test} of one run."""
    metric, task, data, epochs = TASKS[name]
    raw = {
        "model": shape | {"dropout": 0.1, "attn_dropout": 0.1, "pooling": "mean"},
        "data": data | {"tokenizer": tokenizer},
        "train": {"task": task, "init": init, "seed": seed, "epochs": epochs, "batch": 32, "lr": lr, "schedule": "linear", "warmup": 100,
                  "weight_decay": 0.01, "threads": 1},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as where:
        held = loop.train(recipe.resolve(raw), Path(where))
        newest = runs.newest(Path(where) / "checkpoints")[0]
        import qkv

        model, words, r = qkv.load(newest), tokenizers.load(newest), recipe.resolve(raw)
        test = None
        if name != "cola":
            kind = objectives.task_of(task)
            o = objectives.make_task(task, model.config, words, model.config.length)
            test = judge(model, o, o.encode(kind.read(r.data, r.data.source, "test")), words)[0][metric]
    return {"held": held[metric], "test": test}


def show(rows):
    for name in TASKS:
        mine = [r for r in rows if r["task"] == name]
        for init in dict.fromkeys(r["init"] for r in mine):
            held = [100 * r["held"] for r in mine if r["init"] == init]
            test = [100 * r["test"] for r in mine if r["init"] == init and r["test"] is not None]
            seen = f"held-out {TASKS[name][0]} {statistics.mean(held):.1f} ({', '.join(f'{h:.1f}' for h in held)})"
            print(f"{name:5s} {init:8s} {seen}" + (f"   test {statistics.mean(test):.1f}" if test else ""))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("inits", nargs="*", help="NAME=RUN")
    p.add_argument("--tasks", default="sst2,ncbi,cola")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--lr", type=float, default=5e-4)
    p.add_argument("--log", default="transfer.jsonl")
    p.add_argument("--show", action="store_true")
    a = p.parse_args()
    log = Path(a.log)
    if not a.show:
        inits = dict(i.split("=", 1) for i in a.inits)
        first = next(iter(inits.values()))
        shape = {
            k: v
            for k, v in recipe.load(Path(folder.find(first)) / "recipe.toml")["model"].items()
            if k not in ("embed_dim", "vocab", "output")
        }
        tokenizer = str(folder.weights(first))
        for seed in range(1, a.seeds + 1):
            for name in a.tasks.split(","):
                for init, run in {"random": None, **inits}.items():
                    preset = recipe.load(Path(folder.find(run or first)) / "recipe.toml")["model"]["preset"]
                    row = fine_tune(name, shape | {"preset": preset, "embed_dim": "none"}, tokenizer, run, seed, a.lr)
                    row = {"task": name, "init": init, "seed": seed} | row
                    print(row, flush=True)
                    with open(log, "a") as f:
                        f.write(json.dumps(row) + "\n")
    show([json.loads(line) for line in log.read_text().splitlines()])


if __name__ == "__main__":
    main()
