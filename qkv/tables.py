"""Models of tables as scikit-learn estimators: TabularClassifier and TabularRegressor choose columns step by step with sparse attention (TabNet, Arik and Pfister, 2021).

Numbers alone are read, as scikit-learn's own estimators do; columns that hold numbers of categories are named by `categories`.
"""

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from . import models


class Tabular(BaseEstimator):
    """decide, attend, steps, gamma, mask, ghost, momentum: see models.TabularDecider. sparsity: weight of the masks' entropy in the loss. lr, epochs, batch: of
    Adam. patience: epochs without a better held-out loss (a share `holdout` of the rows, where there are 100 or more) after which it ends with the best weights; 0: never.
    pretrain: epochs of telling hidden columns from the others before (section 3.5). categories: columns of categories, whole numbers from 0. width: of a category's vector. seed."""

    def __init__(self, *, decide=8, attend=8, steps=3, gamma=1.3, mask="sparsemax", ghost=128, momentum=0.02, sparsity=1e-3, lr=2e-2, epochs=200, batch=256, patience=20,
                 holdout=0.1, pretrain=0, categories=(), width=1, seed=0):  # fmt: skip
        self.decide, self.attend, self.steps, self.gamma, self.mask, self.ghost, self.momentum = (
            decide,
            attend,
            steps,
            gamma,
            mask,
            ghost,
            momentum,
        )
        self.sparsity, self.lr, self.epochs, self.batch, self.patience, self.holdout, self.pretrain = (
            sparsity,
            lr,
            epochs,
            batch,
            patience,
            holdout,
            pretrain,
        )
        self.categories, self.width, self.seed = categories, width, seed

    def config(self, x, outputs, **more):
        sizes = tuple(int(x[:, c].max()) + 1 for c in self.categories)
        return models.TabularDecider(features=x.shape[1], outputs=outputs, decide=self.decide, attend=self.attend, steps=self.steps, gamma=self.gamma, mask=self.mask,
                                     ghost=self.ghost, momentum=self.momentum, categories=tuple(self.categories), sizes=sizes,
                                     widths=(self.width,) * len(sizes), **more)  # fmt: skip

    def scaled(self, x):
        """Float32 rows; columns of numbers standardised by the training rows, so that no unit is too large for a norm of a small batch."""
        return torch.from_numpy(np.nan_to_num((x - self.mean_) / self.deviation_).astype(np.float32))

    def fit_rows(self, x, y, outputs, loss):
        """Trains on rows (B, N) and targets; loss: (logits, targets) -> mean loss."""
        plain = np.ones(x.shape[1], dtype=bool)
        plain[list(self.categories)] = False
        deviation = x.std(0)
        self.mean_ = np.where(plain, x.mean(0), 0.0)
        self.deviation_ = np.where(plain & (deviation > 1e-12), deviation, 1.0)
        rows = self.scaled(x)
        state = torch.random.get_rng_state()
        torch.manual_seed(self.seed)
        try:
            order = torch.randperm(len(rows))
            held = order[: int(self.holdout * len(rows))] if self.patience and len(rows) >= 100 else order[:0]
            kept = order[len(held) :]
            self.model_ = models.build(self.config(x, outputs))
            if self.pretrain:
                self.tell_hidden(rows[kept], self.config(x, outputs, output="reconstruction"))
            self.n_iter_ = self.train(rows[kept], y[kept], rows[held], y[held], loss)
        finally:
            torch.random.set_rng_state(state)
        self.model_ = self.model_.double().eval()  # so that a row's answer does not depend on how many stand beside it
        rows = self.scaled(x).double()
        with torch.no_grad():
            total = sum(self.model_(part)["importance"].sum(0) for part in rows.split(4096)).numpy().astype(np.float64)
        self.feature_importances_ = total / max(total.sum(), 1e-12)
        return self

    def batches(self, count):
        """Numbers of rows, a batch each; a last batch of one row joins the one before, as norms need two."""
        parts = list(torch.randperm(count).split(min(self.batch, count)))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def train(self, x, y, held_x, held_y, loss):
        model, best, since, state = self.model_, float("inf"), 0, None
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        ran = 0
        for _ in range(self.epochs if len(x) > 1 else 0):
            ran += 1
            model.train()
            for rows in self.batches(len(x)):
                out = model(x[rows])
                value = loss(out["logits"], y[rows]) + self.sparsity * out["m_loss"][0]
                optimizer.zero_grad()
                value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            if len(held_x):
                model.eval()
                with torch.no_grad():
                    now = sum(loss(model(a)["logits"], b).item() * len(a) for a, b in zip(held_x.split(4096), held_y.split(4096)))
                since = 0 if now < best else since + 1
                if now < best:
                    best, state = now, {k: v.clone() for k, v in model.state_dict().items()}
                if since >= self.patience:
                    break
        if state is not None:
            model.load_state_dict(state)
        return ran

    def tell_hidden(self, x, cfg):
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
        own = self.model_.state_dict()
        own.update({k: v for k, v in model.state_dict().items() if k in own})
        self.model_.load_state_dict(own)

    def logits(self, X):
        check_is_fitted(self)
        x = self.scaled(validate_data(self, X, reset=False, dtype=np.float64)).double()
        with torch.no_grad():
            return torch.cat([self.model_(part)["logits"] for part in x.split(4096)]).double().numpy()

    def explain(self, X):
        """(importance (rows, columns), masks (steps, rows, columns)) of each row: which columns its answer was made from."""
        check_is_fitted(self)
        x = self.scaled(validate_data(self, X, reset=False, dtype=np.float64)).double()
        with torch.no_grad():
            parts = [self.model_(part) for part in x.split(4096)]
        return torch.cat([p["importance"] for p in parts]).numpy(), torch.cat([p["masks"] for p in parts], 1).numpy()


class TabularClassifier(ClassifierMixin, Tabular):
    """Classes from columns."""

    def fit(self, X, y):
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: y holds {self.classes_[0]!r} alone")
        return self.fit_rows(X, torch.from_numpy(numbers), len(self.classes_), torch.nn.functional.cross_entropy)

    def predict_proba(self, X):
        scores = self.logits(X)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)

    def predict(self, X):
        best = self.logits(X).argmax(1)
        return self.classes_[best]


class TabularRegressor(RegressorMixin, Tabular):
    """A number from columns."""

    def fit(self, X, y):
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        self.middle_, self.spread_ = float(y.mean()), float(y.std()) or 1.0
        scaled = torch.from_numpy(((y - self.middle_) / self.spread_).astype(np.float32))
        return self.fit_rows(X, scaled, 1, lambda logits, wanted: (logits[:, 0] - wanted).square().mean())

    def predict(self, X):
        said = self.logits(X)[:, 0]
        return said * self.spread_ + self.middle_
