"""Models of tables as scikit-learn estimators: TabularClassifier and TabularRegressor choose columns step by step with sparse attention (TabNet, Arik and Pfister,
2021); SelectorClassifier and SelectorRegressor learn which columns each row needs at all (INVASE, Yoon et al., 2019).

Numbers alone are read, as scikit-learn's own estimators do; columns that hold numbers of categories are named by `categories`. Files with words, missing cells and a
command line: `qkv train tabnet data=FILE target=COLUMN`, which trains the same models.
"""

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from . import models
from .data.columns import Columns
from .objectives.table import losses, right


class Estimator(BaseEstimator):
    """What all have in common: columns, training with the best held-out weights kept, and what each column counts for."""

    def config(self, found, outputs, **more):
        """The model's config for these columns."""
        raise NotImplementedError

    def begin(self, rows, found, outputs):
        """The model that training begins with."""
        return models.build(self.config(found, outputs))

    def fit_rows(self, x, y, outputs):
        """Trains on rows (B, C) and targets, numbers of classes or numbers."""
        self.columns_ = Columns.of([str(i) for i in range(x.shape[1])], x.T.tolist(), self.categories, self.bins)
        rows = torch.from_numpy(self.columns_.read(x.T))
        state = torch.random.get_rng_state()
        torch.manual_seed(self.seed)
        try:
            order = torch.randperm(len(rows))
            held = order[: int(self.holdout * len(rows))] if self.patience and len(rows) >= 100 else order[:0]
            kept = order[len(held) :]
            self.model_ = self.begin(rows[kept], self.columns_, outputs)
            self.n_iter_ = self.train(rows[kept], y[kept], rows[held], y[held])
        finally:
            torch.random.set_rng_state(state)
        self.model_ = self.model_.double().eval()  # so that a row's answer does not depend on how many stand beside it
        total = self.explain_rows(rows.double())[0].sum(0)
        self.feature_importances_ = total / max(total.sum(), 1e-12)
        return self

    def batches(self, count):
        """Numbers of rows, a batch each; a last batch of one row joins the one before, as norms need two."""
        parts = list(torch.randperm(count).split(min(self.batch, count)))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def train(self, x, y, held_x, held_y):
        model, best, since, state = self.model_, float("inf"), 0, None
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        ran = 0
        for _ in range(self.epochs if len(x) > 1 else 0):
            ran += 1
            model.train()
            for rows in self.batches(len(x)):
                value = losses(model, x[rows], y[rows], self.sparsity)[0].mean()
                optimizer.zero_grad()
                value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
                optimizer.step()
            if len(held_x):
                model.eval()
                with torch.no_grad():
                    now = sum(right(model(a)["logits"], b).sum().item() for a, b in zip(held_x.split(4096), held_y.split(4096)))
                since = 0 if now < best else since + 1
                if now < best:
                    best, state = now, {k: v.clone() for k, v in model.state_dict().items()}
                if since >= self.patience:
                    break
        if state is not None:
            model.load_state_dict(state)
        return ran

    def rows(self, X):
        check_is_fitted(self)
        return torch.from_numpy(self.columns_.read(validate_data(self, X, reset=False, dtype=np.float64).T)).double()

    def logits(self, X):
        x = self.rows(X)
        with torch.no_grad():
            return torch.cat([self.model_(part)["logits"] for part in x.split(4096)]).numpy()

    def explain_rows(self, x):
        with torch.no_grad():
            parts = [self.model_(part) for part in x.split(4096)]
        join = lambda name, dim: self.columns_.together(torch.cat([p[name] for p in parts], dim).numpy())
        return join("importance", 0), join("masks", 1) if "masks" in parts[0] else None

    def explain(self, X):
        """(importance (rows, columns), masks (steps, rows, columns)) of each row: which columns its answer was made from. Of a Selector: the probability that a column is
        selected, and None."""
        return self.explain_rows(self.rows(X))


class Tabular(Estimator):
    """decide, attend, steps, gamma, mask, ghost, momentum: see models.TabularDecider. sparsity: weight of the masks' entropy in the loss. lr, epochs, batch: of
    Adam. patience: epochs without a better held-out loss (a share `holdout` of the rows, where there are 100 or more) after which it ends with the best weights; 0: never.
    pretrain: epochs of telling hidden columns from the others before (section 3.5). categories: columns of categories, whole numbers; one that training did not see is
    read as "another". width: of a category's vector. bins: numbers are read as one of so many bins, too, which helps where they are skewed. seed."""

    clip = 1.0

    def __init__(self, *, decide=8, attend=8, steps=3, gamma=1.3, mask="sparsemax", ghost=128, momentum=0.02, sparsity=1e-3, lr=2e-2, epochs=200, batch=256, patience=20,
                 holdout=0.1, pretrain=0, categories=(), width=1, bins=0, seed=0):  # fmt: skip
        self.decide, self.attend, self.steps, self.gamma, self.mask, self.ghost = decide, attend, steps, gamma, mask, ghost
        self.momentum, self.sparsity, self.lr, self.epochs, self.batch, self.patience = momentum, sparsity, lr, epochs, batch, patience
        self.holdout, self.pretrain, self.categories, self.width, self.bins, self.seed = holdout, pretrain, categories, width, bins, seed

    def config(self, found, outputs, **more):
        return models.TabularDecider(outputs=outputs, decide=self.decide, attend=self.attend, steps=self.steps, gamma=self.gamma, mask=self.mask, ghost=self.ghost,
                                     momentum=self.momentum, **found.fields(self.width), **more)  # fmt: skip

    def begin(self, rows, found, outputs):
        model = super().begin(rows, found, outputs)
        if self.pretrain:
            self.tell_hidden(model, rows, self.config(found, outputs, output="reconstruction"))
        return model

    def tell_hidden(self, begun, x, cfg):
        """Pre-training: the values of hidden columns, each over its deviation in the batch (section 3.5); what both models have in common is taken over."""
        model = models.build(cfg)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        for _ in range(self.pretrain):
            model.train()
            for rows in self.batches(len(x)):
                out = model(x[rows], hidden=(torch.rand(len(rows), cfg.features) < cfg.rate).float())
                spread = out["wanted"].std(0) + 1e-6
                wrong = ((out["reconstructed"] - out["wanted"].detach()) * out["covered"] / spread.detach()).square()
                value = wrong.sum() / out["covered"].sum().clamp(min=1)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
        own = begun.state_dict()
        own.update({k: v for k, v in model.state_dict().items() if k in own})
        begun.load_state_dict(own)


class Selecting(Estimator):
    """hidden, judge_hidden, layers, act: see models.Selector. sparsity: what a selected column costs (lambda). lr, epochs, batch: of Adam; patience, holdout, categories, width, bins, seed
    as for TabularClassifier, but patience is 0: a selection goes on getting sparser where the answers no longer get better."""

    clip = float("inf")

    def __init__(self, *, hidden=100, judge_hidden=200, layers=3, act="relu", sparsity=0.1, lr=1e-3, epochs=200, batch=256, patience=0, holdout=0.1, categories=(), width=1, bins=0,
                 seed=0):  # fmt: skip
        self.hidden, self.judge_hidden, self.layers, self.act, self.sparsity, self.lr = hidden, judge_hidden, layers, act, sparsity, lr
        self.epochs, self.batch, self.patience, self.holdout, self.categories, self.width, self.bins, self.seed = (
            epochs,
            batch,
            patience,
            holdout,
            categories,
            width,
            bins,
            seed,
        )

    def config(self, found, outputs):
        return models.Selector(
            outputs=outputs,
            hidden=self.hidden,
            judge_hidden=self.judge_hidden,
            layers=self.layers,
            act=self.act,
            **found.fields(self.width),
        )


class Classifier(ClassifierMixin):
    """Classes from columns."""

    def fit(self, X, y):
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: y holds {self.classes_[0]!r} alone")
        return self.fit_rows(X, torch.from_numpy(numbers), len(self.classes_))

    def predict_proba(self, X):
        scores = self.logits(X)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)

    def predict(self, X):
        best = self.logits(X).argmax(1)
        return self.classes_[best]


class Regressor(RegressorMixin):
    """A number from columns."""

    def fit(self, X, y):
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        self.middle_, self.spread_ = float(y.mean()), float(y.std()) or 1.0
        return self.fit_rows(X, torch.from_numpy(((y - self.middle_) / self.spread_).astype(np.float32)), 1)

    def predict(self, X):
        return self.logits(X)[:, 0] * self.spread_ + self.middle_


class TabularClassifier(Classifier, Tabular):
    __doc__ = f"{Classifier.__doc__} {Tabular.__doc__}"


class TabularRegressor(Regressor, Tabular):
    __doc__ = f"{Regressor.__doc__} {Tabular.__doc__}"


class SelectorClassifier(Classifier, Selecting):
    __doc__ = f"{Classifier.__doc__} {Selecting.__doc__}"


class SelectorRegressor(Regressor, Selecting):
    __doc__ = f"{Regressor.__doc__} {Selecting.__doc__}"
