"""Decision Transformer on CartPole, from trajectories that are mostly bad, beside behaviour cloning of the same ones.

    python benchmarks/decisions.py [--recipe cartpole-decision] [--env CartPole-v1] [--seeds 3] [--episodes 20] [--threads 1]

Prints what the trajectories earned; for every seed and both models the mean return of `episodes` episodes (seeds that training did not see) with the best return asked for;
and what a Decision Transformer earns when less is asked for. Picture: benchmarks/pictures/decisions.png.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from qkv import models, objectives, pictures
from qkv.checkpoints import runs
from qkv.data import Data, trajectories

HERE = Path(__file__).parent


def train(words):
    """The model of a run."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "qkv", "train", *words, "--quiet"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"QKV_RUNS": folder},
        )
        (run,) = (p for p in Path(folder).iterdir() if (p / "checkpoints").is_dir() and not p.is_symlink())
        return models.load(runs.newest(run / "checkpoints")[0])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--recipe", default="cartpole-decision")
    p.add_argument("--env", default="CartPole-v1")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--episodes", type=int, default=20)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    totals = [t.total for t in trajectories.read(Data(env=a.env))]
    print(
        f"{len(totals)} trajectories: mean return {np.mean(totals):.1f}, median {np.median(totals):.1f}, best {max(totals):.1f}\n",
        flush=True,
    )
    print(
        f"| {a.env} | " + " | ".join(f"seed {s}" for s in range(1, a.seeds + 1)) + " | mean |\n|---|" + "---|" * (a.seeds + 1), flush=True
    )
    asked, followed = np.linspace(max(min(totals), min(0, min(totals))), max(totals), 6), []
    for name, more in (("Decision Transformer", []), ("behaviour cloning", ["returns=false"])):
        row = []
        for seed in range(1, a.seeds + 1):
            model = train([a.recipe, f"env={a.env}", f"seed={seed}", f"threads={a.threads}", *more])
            task = objectives.make_task(f"decide(episodes={a.episodes}, seed={50_000 * seed})", model.config, None, 0)
            row.append(task.act(model, model.config.target).mean())
            if not more:
                followed.append([task.act(model, x).mean() for x in asked])
        print(f"| {name} | " + " | ".join(f"{r:.1f}" for r in row) + f" | {np.mean(row):.1f} |", flush=True)
    print("\n| asked for | " + " | ".join(f"{x:.0f}" for x in asked) + " |\n|---|" + "---|" * len(asked))
    print("| earned, mean over seeds | " + " | ".join(f"{x:.1f}" for x in np.mean(followed, 0)) + " |")
    lines = {
        "earned": [(x, m, s) for x, m, s in zip(asked, np.mean(followed, 0), np.std(followed, 0))],
        "asked for": [(x, x) for x in asked],
    }
    pictures.curves(HERE / "pictures" / "decisions.png", lines, x="return that is asked for", y="return", title=a.env)


if __name__ == "__main__":
    main()
