"""Models of tables: TabularDecider chooses features step by step with sparse attention (TabNet, Arik and Pfister, 2021); Selector learns which features of
each row are needed at all (INVASE, Yoon et al., 2019).

Dims: B rows, N columns of the table, M numbers after categories are embedded, D what a step decides with, A what it attends with, K outputs.
"""

import typing
from dataclasses import dataclass

import torch
from torch import nn

from ..checkpoints.config import Key
from .family import Family
from .shape import Output, one_of


def support(x, dim=-1):
    """(sorted x, ranks from 1)"""
    return x.sort(dim=dim, descending=True).values, torch.arange(1, x.shape[dim] + 1, device=x.device, dtype=x.dtype)


class Sparsemax(torch.autograd.Function):
    """The nearest point of the simplex, with zeros (Martins and Astudillo, 2016)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        x = x - x.amax(-1, keepdim=True)
        s, rank = support(x)
        total = s.cumsum(-1) - 1
        size = (rank * s > total).sum(-1, keepdim=True)
        return (x - total.gather(-1, size - 1) / size).clamp(min=0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        g = g.masked_fill(y == 0, 0)
        return torch.where(y > 0, g - g.sum(-1, keepdim=True) / (y > 0).sum(-1, keepdim=True), 0)


class Entmax(torch.autograd.Function):
    """Between softmax and sparsemax, alpha 1.5 (Peters et al., 2019, section 4.2)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        x = (x - x.amax(-1, keepdim=True)) / 2
        s, rank = support(x)
        mean, square = s.cumsum(-1) / rank, s.square().cumsum(-1) / rank
        tau = mean - ((1 - rank * (square - mean.square())) / rank).clamp(min=0).sqrt()
        size = (tau <= s).sum(-1, keepdim=True)
        return (x - tau.gather(-1, size - 1)).clamp(min=0).square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        root = y.sqrt()
        return root * (g - (g * root).sum(-1, keepdim=True) / root.sum(-1, keepdim=True))


HALF = 0.7071067690849304  # sqrt(1/2) in float32, as published
MASKS = {"sparsemax": Sparsemax.apply, "entmax": Entmax.apply}


@dataclass(frozen=True, kw_only=True)
class OfTable:
    """features: numbers and categories of a row. outputs: classes, or 1 number. categories: which of the features hold numbers of categories, sizes: how many each has, widths: of
    their vectors. What it was trained on says the rest: columns, how a file's cells become features (data.columns); label_names, the classes; middle and spread, of a number that is
    foretold."""

    features: int
    outputs: int = 2
    categories: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    columns: tuple = ()
    label_names: tuple[str, ...] | None = None
    middle: float = 0.0
    spread: float = 1.0
    whole: typing.ClassVar[tuple] = ("features", "outputs")

    # what is asked of every model; a row is one token
    length: typing.ClassVar = 1
    vocab: typing.ClassVar = 1
    heads: typing.ClassVar = 1
    kv_heads: typing.ClassVar = None
    types: typing.ClassVar = 0
    pad: typing.ClassVar = None

    def __post_init__(self):
        for name in ("categories", "sizes", "widths", "columns", "label_names"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in self.whole:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a whole number of at least 1")
        if not len(self.categories) == len(self.sizes) == len(self.widths):
            raise ValueError(
                f"categories, sizes and widths have {len(self.categories)}, {len(self.sizes)} and {len(self.widths)} entries; each column of categories needs all three"
            )
        if any(not 0 <= c < self.features for c in self.categories) or list(self.categories) != sorted(set(self.categories)):
            raise ValueError(f"categories={self.categories}: numbers of columns from 0 to {self.features - 1}, in order")

    @property
    def numbers(self):
        """Numbers of a row once its categories are vectors."""
        return self.features + sum(self.widths) - len(self.widths)

    @property
    def wide(self):
        return self.dim


@dataclass(frozen=True, kw_only=True)
class TabularDecider(OfTable):
    """decide, attend: widths of a step (n_d, n_a). steps. gamma: how freely a feature may be used
    again. shared, independent: gated layers that all steps share, and of each step's own. ghost: rows of a ghost batch; momentum: of the norms. mask: sparsemax or
    entmax. output: table, or reconstruction of hidden
    features by a decoder (pre-training). rate: share of features that is hidden then."""

    decide: int = 8
    attend: int = 8
    steps: int = 3
    gamma: float = 1.3
    shared: int = 2
    independent: int = 2
    ghost: int = 128
    momentum: float = 0.02
    mask: str = "sparsemax"
    rate: float = 0.2
    output: str = "table"
    whole: typing.ClassVar = ("features", "outputs", "decide", "attend", "steps", "ghost")

    def __post_init__(self):
        super().__post_init__()
        if self.shared < 0 or self.independent < 0 or self.shared + self.independent < 1:
            raise ValueError(f"shared={self.shared} and independent={self.independent}: a step needs at least one layer")
        if self.gamma < 1 or not 0 < self.momentum <= 1 or not 0 <= self.rate < 1:
            raise ValueError(f"gamma={self.gamma} must be at least 1, momentum={self.momentum} in (0, 1], rate={self.rate} in [0, 1)")
        one_of("mask", self.mask, MASKS)
        one_of("output", self.output, ("table", "reconstruction"))

    @property
    def layers(self):
        return self.steps

    @property
    def dim(self):
        return self.decide + self.attend

    def build(self):
        return TabularDeciderModel(self)


class Ghost(nn.BatchNorm1d):
    """Batch norm over parts of a batch (Hoffer et al., 2017)."""

    def __init__(self, width, ghost, momentum):
        super().__init__(width, momentum=momentum)
        self.ghost = ghost

    def forward(self, x_BF):
        if not self.training:
            return super().forward(x_BF)
        return torch.cat([super(Ghost, self).forward(part) for part in x_BF.chunk(-(-len(x_BF) // self.ghost))])


def drawn(layer, gated=False):
    """A linear layer with the published spread of weights."""
    out, fan = layer.weight.shape
    nn.init.xavier_normal_(layer.weight, gain=((fan + out) / (fan if gated else 4 * fan) ** 0.5) ** 0.5)
    return layer


class Gated(nn.Module):
    """Gated layers one after another, each added to what it reads and scaled by sqrt(1/2) (figure 4c). common: layers whose weights other steps
    share."""

    def __init__(self, before, width, common, own, cfg):
        super().__init__()
        norm = lambda: Ghost(2 * width, cfg.ghost, cfg.momentum)
        self.norms = nn.ModuleList(norm() for _ in common)
        self.own = nn.ModuleList(
            drawn(nn.Linear(before if i == 0 and not common else width, 2 * width, bias=False), True) for i in range(own)
        )
        self.own_norms = nn.ModuleList(norm() for _ in range(own))

    def forward(self, x, common):
        for i, (layer, norm) in enumerate([*zip(common, self.norms), *zip(self.own, self.own_norms)]):
            y = nn.functional.glu(norm(layer(x)), -1)
            x = y if i == 0 else (x + y) * HALF
        return x


class TableModel(nn.Module):
    """Rows of a table in: categories become vectors."""

    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.embed = nn.ModuleList(nn.Embedding(n, w) for n, w in zip(cfg.sizes, cfg.widths))
        wide = dict(zip(cfg.categories, cfg.widths))
        self.counts = [wide.get(column, 1) for column in range(cfg.features)]  # numbers of each column

    def widened(self, x_BN: torch.Tensor) -> torch.Tensor:
        """(B, M) what each column has, for every number of that column."""
        return x_BN.repeat_interleave(torch.tensor(self.counts, device=x_BN.device), 1, output_size=self.config.numbers)

    def numbers(self, x_BN):
        """(B, M) with categories as vectors. Raises ValueError for a category that is not there."""
        cfg = self.config
        if x_BN.dim() != 2 or x_BN.shape[1] != cfg.features:
            raise ValueError(f"the table has the shape {tuple(x_BN.shape)}; it must be (rows, {cfg.features})")
        if not cfg.categories:
            return x_BN
        parts = []
        for column in range(cfg.features):
            values = x_BN[:, column]
            if column in cfg.categories:
                k = cfg.categories.index(column)
                if len(values) and not 0 <= int(values.min()) <= int(values.max()) < cfg.sizes[k]:
                    raise ValueError(f"column {column} holds category {int(values.max())}; the model knows 0 to {cfg.sizes[k] - 1}")
                parts.append(self.embed[k](values.long()))
            else:
                parts.append(values[:, None].to(next(self.parameters()).dtype))
        return torch.cat(parts, 1)


class TabularDeciderModel(TableModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        M, width = cfg.numbers, cfg.decide + cfg.attend
        self.norm = nn.BatchNorm1d(M, momentum=0.01)
        gated = lambda before: [drawn(nn.Linear(before if i == 0 else width, 2 * width, bias=False), True) for i in range(cfg.shared)]
        self.common = nn.ModuleList(gated(M))
        self.split = Gated(M, width, self.common, cfg.independent, cfg)
        self.transforms = nn.ModuleList(Gated(M, width, self.common, cfg.independent, cfg) for _ in range(cfg.steps))
        self.attend = nn.ModuleList(drawn(nn.Linear(cfg.attend, cfg.features, bias=False)) for _ in range(cfg.steps))
        self.attend_norms = nn.ModuleList(Ghost(cfg.features, cfg.ghost, cfg.momentum) for _ in range(cfg.steps))
        self.spare = nn.BatchNorm1d(M, momentum=0.01)  # in published files; nothing reads it
        self.head = drawn(nn.Linear(cfg.decide, cfg.outputs, bias=False)) if cfg.output == "table" else None
        self.decoder = Reconstructor(cfg) if cfg.output == "reconstruction" else None

    def decide(self, x_BM, prior=None):
        """([what each step decides with (B, D)], [masks (B, N)], mean entropy of the masks, negative)."""
        cfg, x = self.config, self.norm(x_BM)
        prior = x.new_ones(len(x), cfg.features) if prior is None else prior
        attention, decided, masks, spread = self.split(x, self.common)[:, cfg.decide :], [], [], 0.0
        counts = x.new_tensor(self.counts)  # a column's mask is shared out among its numbers
        for transform, attend, norm in zip(self.transforms, self.attend, self.attend_norms):
            mask = MASKS[cfg.mask](norm(attend(attention)) * prior)
            spread = spread + (mask * (mask + 1e-15).log()).sum(1).mean()
            prior = prior * (cfg.gamma - mask)
            out = transform(self.widened(mask / counts) * x, self.common)
            decided.append(torch.relu(out[:, : cfg.decide]))
            masks.append(mask)
            attention = out[:, cfg.decide :]
        return decided, masks, spread / cfg.steps

    def forward(self, x, hidden=None):
        """x (B, N) -> logits (B, K), m_loss (1,) the entropy of the masks with its sign turned, masks (steps, B, N), importance (B, N) of the features
        of each row (section 3.4). With output=reconstruction: hidden (B, N) 1 where a feature is not seen; reconstructed (B, M), wanted (B, M)."""
        x = self.numbers(x)
        if self.decoder is not None:
            hidden = x.new_zeros(len(x), self.config.features) if hidden is None else hidden
            covered = self.widened(hidden)
            decided, masks, spread = self.decide(x * (1 - covered), 1 - hidden)
            return Output(reconstructed=self.decoder(decided), wanted=x, covered=covered, masks=torch.stack(masks), m_loss=spread[None])
        decided, masks, spread = self.decide(x)
        weight = [d.sum(1, keepdim=True) for d in decided]
        importance = sum(w * m for w, m in zip(weight, masks))
        return Output(logits=self.head(sum(decided)), m_loss=spread[None], masks=torch.stack(masks), importance=importance)


class Reconstructor(nn.Module):
    """Hidden features from what the steps decided with (section 3.5)."""

    def __init__(self, cfg):
        super().__init__()
        D = cfg.decide
        self.common = nn.ModuleList([drawn(nn.Linear(D, 2 * D, bias=False), True)])
        self.transforms = nn.ModuleList(Gated(D, D, self.common, 1, cfg) for _ in range(cfg.steps))
        self.out = drawn(nn.Linear(D, cfg.numbers, bias=False))

    def forward(self, decided):
        return self.out(sum(t(d, self.common) for t, d in zip(self.transforms, decided)))


@dataclass(frozen=True, kw_only=True)
class Layered(OfTable):
    """layers, one after another, with `hidden` units each. act: of the hidden units."""

    layers: int = 3
    hidden: int = 100
    act: str = "relu"
    output: str = "table"

    def __post_init__(self):
        super().__post_init__()
        one_of("output", self.output, ("table",))
        one_of("act", self.act, ACTS)


@dataclass(frozen=True, kw_only=True)
class Selector(Layered):
    """hidden, judge_hidden: widths of the selector, and of predictor and baseline. layers: of each."""

    judge_hidden: int = 200
    whole: typing.ClassVar = ("features", "outputs", "hidden", "judge_hidden", "layers")

    @property
    def dim(self):
        return self.judge_hidden

    def build(self):
        return SelectorModel(self)


ACTS = {"relu": nn.ReLU, "selu": nn.SELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "silu": nn.SiLU}


def perceptron(before, hidden, after, layers, act, norms=False):
    """Layers one after another; norms: a batch norm behind each activation."""
    parts = []
    for _ in range(layers - 1):
        parts += [nn.Linear(before, hidden), ACTS[act](), *([nn.BatchNorm1d(hidden, eps=1e-3)] if norms else [])]
        before = hidden
    return nn.Sequential(*parts, nn.Linear(before, after))


class SelectorModel(TableModel):
    """Selector, predictor of what was selected, and a baseline that sees everything (figure 1)."""

    def __init__(self, cfg):
        super().__init__(cfg)
        net = lambda hidden, after, norms: perceptron(cfg.numbers, hidden, after, cfg.layers, cfg.act, norms)
        self.selector = net(cfg.hidden, cfg.features, False)
        self.predictor, self.baseline = net(cfg.judge_hidden, cfg.outputs, True), net(cfg.judge_hidden, cfg.outputs, True)

    def forward(self, x, selection=None, draw=False):
        """x (B, N), selection (B, N) of 0 and 1, by default what is likelier than not, or with `draw` drawn by its probability -> selection (B, N) probabilities, scores (B, N) their logits, chosen (B, N),
        logits (B, K) of the predictor, which sees what was chosen, baseline_logits (B, K), importance (B, N), the probabilities."""
        x = self.numbers(x)
        scores = self.selector(x)
        p = scores.sigmoid()
        chosen = selection if selection is not None else torch.bernoulli(p.detach()) if draw else (p > 0.5).to(x.dtype)
        return Output(
            selection=p,
            scores=scores,
            chosen=chosen,
            logits=self.predictor(x * self.widened(chosen)),
            baseline_logits=self.baseline(x),
            importance=p,
        )


@dataclass(frozen=True, kw_only=True)
class Perceptron(Layered):
    """layers: 1 is the perceptron (Rosenblatt, 1958), a weighted sum; more have `hidden` units each, trained by back-propagation (Rumelhart et al., 1986)."""

    layers: int = 1
    hidden: int = 32
    act: str = "tanh"
    whole: typing.ClassVar = ("features", "outputs", "layers", "hidden")

    @property
    def dim(self):
        return self.hidden

    def build(self):
        return PerceptronModel(self)


class PerceptronModel(TableModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.net = perceptron(cfg.numbers, cfg.hidden, cfg.outputs, cfg.layers, cfg.act)

    def forward(self, x):
        """x (B, N) -> logits (B, K)"""
        return Output(logits=self.net(self.numbers(x)))


BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _tab_before(raw, cls):
    wide = raw.get("cat_emb_dim", 1)
    raw["cat_emb_dim"] = [wide] * len(raw.get("cat_idxs", ())) if isinstance(wide, int) else wide
    if not raw.pop("use_group_matrix", True) and raw.get("cat_idxs"):
        raise ValueError("use_group_matrix=false with categories: masks of single numbers of a category's vector are not built")
    return raw


def _tab_table(cfg):
    norm = lambda theirs, ours: [(f"{theirs}.{leaf}", f"{ours}.{leaf}") for leaf in BN]
    E = "tabnet.encoder."
    rows = [(f"embedder.embeddings.{k}.weight", f"embed.{k}.weight") for k in range(len(cfg.categories))]
    rows += norm(E + "initial_bn", "norm") + norm("tabnet.initial_bn", "spare") + [("tabnet.final_mapping.weight", "head.weight")]
    for place, ours in [("initial_splitter", "split"), *((f"feat_transformers.{n}", f"transforms.{n}") for n in range(cfg.steps))]:
        for i in range(cfg.shared):
            rows += [(f"{E}{place}.shared.{name}.weight", f"common.{i}.weight") for name in (f"shared_layers.{i}", f"glu_layers.{i}.fc")]
            rows += norm(f"{E}{place}.shared.glu_layers.{i}.bn.bn", f"{ours}.norms.{i}")
        for i in range(cfg.independent):
            rows += [(f"{E}{place}.specifics.glu_layers.{i}.fc.weight", f"{ours}.own.{i}.weight")]
            rows += norm(f"{E}{place}.specifics.glu_layers.{i}.bn.bn", f"{ours}.own_norms.{i}")
    for n in range(cfg.steps):
        rows += [(f"{E}att_transformers.{n}.fc.weight", f"attend.{n}.weight"), *norm(f"{E}att_transformers.{n}.bn.bn", f"attend_norms.{n}")]
    return rows


TABNET = Family(
    name="tabnet",
    config=TabularDecider,
    keys=(
        Key("input_dim", "features", 8),
        Key("output_dim", "outputs", 2),
        Key("n_d", "decide", 8),
        Key("n_a", "attend", 8),
        Key("n_steps", "steps", 3),
        Key("gamma", "gamma", 1.3),
        Key("n_independent", "independent", 2),
        Key("n_shared", "shared", 2),
        Key("virtual_batch_size", "ghost", 128),
        Key("momentum", "momentum", 0.02),
        Key("mask_type", "mask", "sparsemax"),
        Key("cat_idxs", "categories", (), tuple, list),
        Key("cat_dims", "sizes", (), tuple, list),
        Key("cat_emb_dim", "widths", (), tuple, list),
    ),
    before=_tab_before,
    neutral=("epsilon",),
    classes={"TabNet": dict(output="table")},
    table=_tab_table,
)


def _invase_table(cfg):
    rows = []
    for theirs, ours, step in (("actor", "selector", 2), ("critic", "predictor", 3), ("baseline", "baseline", 3)):
        for i in range(cfg.layers):
            rows += [(f"{theirs}.model.{step * i}.{leaf}", f"{ours}.{step * i}.{leaf}") for leaf in ("weight", "bias")]
            if step == 3 and i < cfg.layers - 1:
                rows += [(f"{theirs}.model.{3 * i + 2}.{leaf}", f"{ours}.{3 * i + 2}.{leaf}") for leaf in BN]
    return rows


INVASE = Family(
    name="invase",
    config=Selector,
    keys=(
        Key("dim", "features", 11),
        Key("label_dim", "outputs", 2),
        Key("actor_h_dim", "hidden", 100),
        Key("critic_h_dim", "judge_hidden", 200),
        Key("n_layer", "layers", 3),
        Key("activation", "act", "relu"),
    ),
    classes={"InvaseModel": dict(output="table")},
    table=_invase_table,
)
OWN = {
    "tabnet": TabularDecider(features=1),
    "invase": Selector(features=1),
    "perceptron": Perceptron(features=1),
    "mlp": Perceptron(features=1, layers=3),
}
FAMILIES = (TABNET, INVASE)
