"""From a fixed vector to attention alone: an LSTM that hands over one vector (Sutskever et al., 2014), the same task with additive attention (Bahdanau et al.,
2015), and the Transformer (Vaswani et al., 2017), with as many parameters, as many epochs of the same pairs, the same tokenizer and the same search.

    QKV_DATA=... python benchmarks/seq2seq.py [date] [multi30k] [--epochs N] [--threads 1] [--only fixed,bahdanau,transformer]

date: any way to write a date, to ISO (generated, 20,000 pairs a model, new ones held out). multi30k: English to German, test_2016_flickr. BLEU (sacreBLEU; of dates by characters) in all,
and by the length of the source in quarters; dates also by how many are exact. One table, one picture (benchmarks/pictures/seq2seq-TASK.png), and an alignment picture of Bahdanau
attention (alignment-TASK.png). What each model reached is kept in benchmarks/logs/seq2seq-TASK.json, so that they can be trained one by one. The recurrent models' width is the one whose parameters come nearest to the Transformer's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from qkv import generation, models, pictures
from qkv.checkpoints import runs
from qkv.cli.generate import aligned
from qkv.data import Data, open_corpus, registry, text
from qkv.data import tokenizer as tokenizers
from qkv.models import account

HERE = Path(__file__).parent
TASKS = {
    "date": {"epochs": 20, "vocab": 70, "beams": 1, "transformer": dict(dim=64, layers=2, heads=4, hidden=128, length=64), "dropout": 0.1,
             "data": ["data=task:date", "tokenizer=char"], "train": ["batch=64", "tokens=2048", "warmup=100", "smoothing=0.0"]},
    "multi30k": {"epochs": 7, "vocab": 4000, "beams": 4, "transformer": dict(dim=128, layers=4, heads=4, hidden=256, length=128), "dropout": 0.3,
                 "data": ["data=multi30k", "languages=en-de", "tokenizer=bpe", "vocab=4000"], "train": ["tokens=2048", "warmup=300", "smoothing=0.1"]},
}  # fmt: skip
MODELS = {
    "fixed": ("LSTM, fixed vector", "lstm-seq2seq-nano", dict(layers=2), 2e-3),
    "bahdanau": ("GRU, Bahdanau attention", "bahdanau-nano", {}, 2e-3),
    "transformer": ("Transformer", "transformer-nano", dict(order="pre", final_norm=True), 3e-3),
}


def count(preset, **fields):
    return sum(p.numel() for p in account.blank(models.preset(preset, **fields)).parameters())


def sized(task, which):
    """Fields of a model with as many parameters as the Transformer's."""
    spec, (_, preset, more, _) = TASKS[task], MODELS[which]
    big = spec["transformer"] | {"vocab": spec["vocab"], "dropout": spec["dropout"]}
    if which == "transformer":
        return big | more
    aim = count("transformer-nano", **big, **MODELS["transformer"][2])
    fields = {"vocab": spec["vocab"], "dropout": spec["dropout"], "length": big["length"]} | more
    dim = min(range(16, 513), key=lambda d: abs(count(preset, **fields, dim=d) - aim))
    return fields | {"dim": dim}


def train(task, which, epochs, threads, folder):
    """(model, tokenizer, seconds)"""
    spec, (_, preset, _, lr) = TASKS[task], MODELS[which]
    fields = [f"model.{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in sized(task, which).items() if k != "vocab"]
    words = ["train", preset, *spec["data"], *fields, *spec["train"], f"lr={lr}", "schedule=cosine", f"epochs={epochs}", f"threads={threads}", "beta2=0.98",
             "eval_every=1000", "sample_every=1000", "--quiet"]  # fmt: skip
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "qkv", *words], check=True, env=os.environ | {"QKV_RUNS": str(folder)}, stdout=subprocess.DEVNULL)
    (run,) = (p for p in folder.iterdir() if (p / "checkpoints").is_dir() and not p.is_symlink())
    where, _ = runs.newest(run / "checkpoints")
    return models.load(where), tokenizers.load(where), time.monotonic() - began


def held(task):
    """[(source, target)]"""
    if task == "date":
        return open_corpus(Data(source="task:date")).valid[:1000]
    return text.pairs(*(str(registry.fetch(task, f"test_2016_flickr.{x}")) for x in ("en", "de")))


def judged(task, model, tokenizer, rows, beams):
    """(BLEU, share that is exact, [(middle length of a quarter, its BLEU)])"""
    import sacrebleu

    order, said = sorted(range(len(rows)), key=lambda i: len(rows[i][0])), [""] * len(rows)
    for i in range(0, len(order), 50):
        part = order[i : i + 50]
        answers = generation.complete(model, tokenizer, [rows[j][0] for j in part], most=100, beams=beams if beams > 1 else 0)
        for j, a in zip(part, answers):
            said[j] = a.strip()
    bleu = lambda these: (
        sacrebleu.corpus_bleu([said[i] for i in these], [[rows[i][1] for i in these]], tokenize="char" if task == "date" else "13a").score
    )
    size = (lambda i: len(rows[i][0])) if task == "date" else (lambda i: len(rows[i][0].split()))
    order.sort(key=size)
    quarters = [order[i * len(order) // 4 : (i + 1) * len(order) // 4] for i in range(4)]
    exact = sum(a == b for a, (_, b) in zip(said, rows)) / len(rows)
    return bleu(order), exact, [(sum(map(size, q)) / len(q), bleu(q)) for q in quarters]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tasks", nargs="*", default=list(TASKS))
    p.add_argument("--epochs", type=float)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--only", default=",".join(MODELS))
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    (HERE / "pictures").mkdir(exist_ok=True)
    for task in a.tasks:
        spec, rows, kept = TASKS[task], held(task), HERE / "logs" / f"seq2seq-{task}.json"
        print(
            f"| {task}, {len(rows)} held out | parameters | BLEU | exact | BLEU by length of the source, in quarters | training |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for which in a.only.split(","):
            with tempfile.TemporaryDirectory() as folder:
                model, tokenizer, seconds = train(task, which, a.epochs or spec["epochs"], a.threads, Path(folder))
            bleu, exact, quarters = judged(task, model, tokenizer, rows, spec["beams"])
            found = (json.loads(kept.read_text()) if kept.exists() else {}) | {MODELS[which][0]: quarters}
            kept.write_text(json.dumps(found, indent=1))
            n = sum(p.numel() for p in model.parameters())
            by = ", ".join(f"{x:.0f}: {y:.1f}" for x, y in quarters)
            print(f"| {MODELS[which][0]} | {n:,} | {bleu:.1f} | {100 * exact:.1f} % | {by} | {seconds / 60:.0f} min |", flush=True)
            if which == "bahdanau":
                (answer,) = generation.complete(model, tokenizer, [rows[3][0]], most=100)
                aligned(model, tokenizer, rows[3][0], answer, HERE / "pictures" / f"alignment-{task}.png")
        unit = "characters" if task == "date" else "words"
        pictures.curves(
            HERE / "pictures" / f"seq2seq-{task}.png", json.loads(kept.read_text()), x=f"{unit} of the source", y="BLEU", title=task
        )


if __name__ == "__main__":
    main()
