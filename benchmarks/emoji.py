"""Captions of emoji by a small Flamingo: a CLIP's tower, a language model that was trained on names alone and stays frozen, and between them
what is trained here; judged on held-out emoji behind 0, 1, 2, 4 examples.

    python benchmarks/emoji.py --names names.tsv --files noto_72x72.zip [--clip RUN] [--seconds 600] [--threads 1]

Prints a table: F1 of words and exact names; the loss a token of the true name. The examples are training emoji, the most alike to the asked one by the frozen
tower (RICES, Flamingo, section C.3), or any.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from qkv import objectives
from qkv.data import Data
from qkv.evaluation.tasks import judge
from qkv.training import assemble, folder


def qkv(*words):
    """Runs a command of qkv and returns the folder of its run."""
    subprocess.run([sys.executable, "-m", "qkv", *words, "--plain"], check=True)
    return folder.find("last")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--names", required=True)
    p.add_argument("--files", required=True)
    p.add_argument("--clip", help="a run of recipe emoji-clip, trained now where it is not given")
    p.add_argument("--words", help="a run of the language model, likewise")
    p.add_argument("--run", help="a Flamingo that was trained here before")
    p.add_argument("--seconds", type=int, default=600)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    for name in ("clip", "words", "run"):
        if getattr(a, name):
            setattr(a, name, str(folder.find(getattr(a, name)).resolve()))
    os.environ["QKV_RUNS"] = str(Path("emoji-runs").resolve())  # `last` is then one of ours
    data = (f"data={a.names}", f"files={a.files}")
    threads = f"threads={a.threads}"
    if not a.run:
        clip = a.clip or qkv("train", "emoji-clip", *data, threads)
        words = a.words or language(
            Data(source=a.names, files=a.files, text="file", pair="name", without="skin tone", holdout=0.2), threads
        )
        a.run = qkv("train", "emoji-flamingo", *data, f"init=words={words},picture={clip}", f"seconds={a.seconds}", threads)
    show(folder.find(str(a.run)))


def language(d, threads):
    """A decoder trained on the names of the training emoji, in several orders, in each of which neighbours have words in common: it reads on over
    their ends, and so learns to go by the names before."""
    names = [e.pair for e in assemble.labelled(d, objectives.task_of("caption")).train]
    orders = [names, sorted(names), sorted(names, key=lambda n: n.split()[::-1]), sorted(names, key=lambda n: (n.split()[1:], n))]
    text = Path("emoji-names.txt")
    text.write_text("\n".join(n for order in orders for n in order) + "\n", encoding="utf-8")
    return qkv("train", "gpt-nano", "dim=128", "layers=4", "heads=4", "hidden=256", "length=128", f"data={text}", "split=line", "across=true",
               "tokenizer=wordpiece", "vocab=1024", "seconds=150", "batch=16", "dropout=0.1", threads)  # fmt: skip


def show(run):
    from qkv import models
    from qkv.cli.train import newest
    from qkv.data import tokenizer as tokenizers
    from qkv.training import recipe

    where = newest(run)
    model, tokenizer = models.load(where), tokenizers.load(where)
    whole = recipe.resolve(recipe.load(run / "recipe.toml"))
    kind = objectives.task_of("caption")
    corpus = assemble.labelled(whole.data, kind, whole.train.seed)
    print(
        f"{len(corpus.train)} training emoji, {len(corpus.valid)} held out\n| examples | loss a token | F1 of words | exact |\n|---|---|---|---|",
        flush=True,
    )
    for near in (True, False):
        for shots in (0, 1, 2, 4):
            if shots == 0 and not near:
                continue
            task = objectives.make_task(f"caption(shots={shots}, near={near})", model.config, tokenizer, model.config.length)
            task.encode(corpus.train, training=True)
            task.prepare(model)
            held, _ = judge(model, task, task.encode(corpus.valid), tokenizer)
            name = "none" if not shots else f"{shots}, {'the most alike' if near else 'any'}"
            print(f"| {name} | {held['loss']:.3f} | {100 * held['f1']:.1f} | {100 * held['exact']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
