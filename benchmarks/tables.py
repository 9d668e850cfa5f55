"""Tables: TabNet and INVASE beside gradient boosting on Adult, and whether their importance finds the columns that decide.

    python benchmarks/tables.py --adult FOLDER [--epochs 60] [--seeds 3] [--threads 1]

Adult: the published training and test rows; numbers as they are, categories numbered (those not seen in training: one number more), `?` is a category. Gradient boosting is
scikit-learn's HistGradientBoostingClassifier at its defaults. Synthetic (INVASE, 2019, section 4): 11 columns of which 2, 4 and 4 decide; of each test row the
columns are taken whose share of TabNet's importance is above 1/11, or which INVASE selects (probability above 0.5). TPR: share of the deciding columns that are taken; FDR: share of the taken that do not decide.
"""

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from qkv.tables import SelectorClassifier, TabularClassifier

NUMBERS = (0, 2, 4, 10, 11, 12)
NAMES = ("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race", "sex", "capital-gain", "capital-loss", "hours",
         "country")  # fmt: skip


def adult(folder):
    """(train rows, train labels, test rows, test labels, columns of categories)"""
    parts = []
    for part in ("train", "test"):
        with gzip.open(Path(folder) / f"adult.{part}.csv.gz", "rt", encoding="utf-8") as f:
            rows = [[c.strip() for c in r] for r in csv.reader(f) if len(r) == 15][1:]
        parts.append(rows)
    columns = [c for c in range(14) if c not in NUMBERS]
    known = {c: {v: i for i, v in enumerate(sorted({r[c] for r in parts[0]}))} for c in columns}
    rows = [np.array([[float(r[c]) if c in NUMBERS else known[c].get(r[c], 0) for c in range(14)] for r in part]) for part in parts]
    labels = [np.array([r[14].startswith(">50K") for r in part]).astype(int) for part in parts]
    return rows[0], labels[0], rows[1], labels[1], columns


def synthetic(kind, count, seed):
    r = np.random.default_rng(seed)
    x = r.normal(size=(count, 11))
    if kind == 1:
        logit, decide = np.exp(x[:, 0] * x[:, 1]), (0, 1)
    elif kind == 2:
        logit, decide = np.exp((x[:, 2:6] ** 2).sum(1) - 4), (2, 3, 4, 5)
    else:
        logit, decide = np.exp(-10 * np.sin(0.2 * x[:, 6]) + np.abs(x[:, 7]) + x[:, 8] + np.exp(-x[:, 9]) - 2.4), (6, 7, 8, 9)
    p = 1 / (1 + logit)
    return x, (r.random(count) < p).astype(int), decide


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--adult")
    p.add_argument("--epochs", type=int, default=60)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    if a.adult:
        x, y, tx, ty, columns = adult(a.adult)
        common = dict(categories=columns, bins=50, batch=1024, epochs=a.epochs)
        models = {
            "gradient boosting": lambda s: HistGradientBoostingClassifier(categorical_features=columns, random_state=s),
            "TabNet": lambda s: TabularClassifier(ghost=512, momentum=0.1, patience=12, seed=s, **common),
            "INVASE": lambda s: SelectorClassifier(seed=s, sparsity=0.05, **common | {"epochs": 15}),
        }
        for name, make in models.items():
            aucs, right = [], []
            for seed in range(a.seeds):
                model = make(seed).fit(x, y)
                aucs.append(100 * roc_auc_score(ty, model.predict_proba(tx)[:, 1]))
                right.append(100 * model.score(tx, ty))
            print(
                f"| Adult | {name} | AUC {np.mean(aucs):.2f} ({min(aucs):.2f} to {max(aucs):.2f}) | accuracy {np.mean(right):.2f} |",
                flush=True,
            )
            if hasattr(model, "feature_importances_"):
                print(
                    "importance:",
                    ", ".join(f"{NAMES[c]} {v:.2f}" for c, v in sorted(enumerate(model.feature_importances_), key=lambda e: -e[1])[:6]),
                    flush=True,
                )
    for kind in (1, 2, 3):
        x, y, decide = synthetic(kind, 10000, 0)
        tx, ty, _ = synthetic(kind, 10000, 1)
        shares = lambda model: (lambda i: i / i.sum(1, keepdims=True).clip(1e-12) > 1 / 11)(model.explain(tx)[0])
        models = {
            "gradient boosting": (HistGradientBoostingClassifier(random_state=0), None),
            "TabNet": (TabularClassifier(batch=1024, ghost=256, epochs=a.epochs, patience=15), shares),
            "INVASE": (SelectorClassifier(batch=1000, epochs=150), lambda model: model.explain(tx)[0] > 0.5),
        }
        for name, (model, take) in models.items():
            auc = 100 * roc_auc_score(ty, model.fit(x, y).predict_proba(tx)[:, 1])
            if take is None:
                print(f"| Syn{kind} | {name} | AUC {auc:.1f} | | |", flush=True)
                continue
            taken = take(model)
            right = taken[:, list(decide)].sum(1)
            tpr, fdr = (right / len(decide)).mean(), ((taken.sum(1) - right) / taken.sum(1).clip(1)).mean()
            print(f"| Syn{kind} | {name} | AUC {auc:.1f} | TPR {100 * tpr:.1f} | FDR {100 * fdr:.1f} |", flush=True)


if __name__ == "__main__":
    main()
