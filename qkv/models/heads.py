"""What stands on top of a stack. A head maps (hidden, facts) to named tensors.

Dims: B batch, T tokens, D model, V vocabulary, N labels.
"""

import torch
from torch import nn

from ..core import plain
from ..core.layers import Dropout, LayerNorm, activation
from .loss import loss_of_scores, token_loss


def at_place(hidden_BTD, place_B):
    """(B, D): one token of every row."""
    return hidden_BTD[torch.arange(len(place_B), device=place_B.device), place_B]


class Rows(nn.Linear):
    """The first `out_features` rows of a weight that it shares with an embedding of more."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight[: self.out_features], self.bias)


class LanguageHead(nn.Module):
    """Scores of every token of the vocabulary.

    weight: an embedding's (V, width) to share. scale: factor on the hidden states (T5). transform: name of an activation, for BERT's
    extra layer before the output matrix, to `width` (dim by default). steady: a bias that is not trained (Marian).
    """

    def __init__(self, dim, vocab, weight=None, bias=False, scale=1.0, transform=None, eps=1e-12, steady=False, width=None):
        super().__init__()
        width = width or dim
        if width != dim and not transform:
            raise ValueError(f"an embedding of {width} under states of {dim} needs a layer between them: set transform")
        self.scale = scale
        self.dense = nn.Linear(dim, width) if transform else None
        self.act = activation(transform) if transform else None
        self.norm = LayerNorm(width, eps) if transform else None
        if weight is not None and weight.shape[1] != width:
            raise ValueError(
                f"embed_dim={weight.shape[1]}: a shared output matrix reads states of {width}; set tie=false, or leave embed_dim out"
            )
        kind = nn.Linear if weight is None or len(weight) == vocab else Rows
        self.out, self.vocab = kind(width, vocab, bias=bias), vocab
        if weight is not None:
            self.out.weight = weight
        if steady:
            self.register_buffer("steady", torch.zeros(1, vocab))

    @property
    def bias(self):
        """(V,) all that is added to the scores, or None."""
        steady = self.steady[0] if hasattr(self, "steady") else None
        return self.out.bias if steady is None else steady if self.out.bias is None else self.out.bias + steady

    def transformed(self, hidden_BTD, at=None):
        """What the output matrix is multiplied with, of the flat places `at` alone where they are given."""
        x = hidden_BTD if at is None else hidden_BTD.flatten(0, 1)[at]
        x = x if self.scale == 1.0 else x * self.scale
        return x if self.dense is None else self.norm(self.act(self.dense(x)))

    def forward(self, hidden_BTD, facts=None):
        """logits (..., V), of the flat places facts["at"] alone where they are given; or, where facts["labels"] (N,) are, the loss
        alone: loss, plain and hits of `token_loss`."""
        x = self.transformed(hidden_BTD, (facts or {}).get("at"))
        labels = (facts or {}).get("labels")
        if labels is not None:
            loss, exact, hits = self.loss(x.flatten(0, -2), labels, facts["smoothing"])
            return {"loss": loss, "plain": exact, "hits": hits}
        return {"logits": self.scores(x)}

    def scores(self, x_ND):
        """(..., V) of transformed states."""
        logits = self.out(x_ND)
        return logits + self.steady if hasattr(self, "steady") else logits

    def loss(self, x_ND, labels_N, smoothing=0.0):
        """`token_loss` of transformed states, without ever forming all scores where nobody looks at them."""
        if plain(self.out) or plain(self.out, Rows):
            return token_loss(x_ND, self.out.weight[: self.vocab], self.bias, labels_N, smoothing)
        return loss_of_scores(self.scores(x_ND), labels_N, smoothing)


class ItemHead(LanguageHead):
    """Scores of every item, and as hidden the vectors that items are compared with (BERT4Rec, 2019, section 3.6)."""

    def forward(self, hidden_BTD, facts=None):
        return super().forward(hidden_BTD, facts) | {"hidden": self.transformed(hidden_BTD)}


class TokenHead(nn.Module):
    """A label for every token: logits (B, T, N)."""

    def __init__(self, dim, labels, dropout=0.0):
        super().__init__()
        self.drop, self.out = Dropout(dropout), nn.Linear(dim, labels)

    def forward(self, hidden_BTD, facts):
        return {"logits": self.out(self.drop(hidden_BTD))}


class SpanHead(nn.Module):
    """Start and end of an answer: two scores a token."""

    def __init__(self, dim):
        super().__init__()
        self.out = nn.Linear(dim, 2)

    def forward(self, hidden_BTD, facts):
        start, end = self.out(hidden_BTD).unbind(-1)
        return {"start_logits": start, "end_logits": end}


class PooledHead(nn.Module):
    """A label for a whole text: logits (B, N). It reads the pooled vector (BERT), or where `act` names an activation, its own layer
    on what stands for the whole text (RoBERTa, ELECTRA: the first token) or on `place`, one a row (BART)."""

    def __init__(self, dim, labels, dropout=0.0, act=None):
        super().__init__()
        self.drop, self.act = Dropout(dropout), activation(act) if act else None
        self.dense = nn.Linear(dim, dim) if act else None
        self.out = nn.Linear(dim, labels)

    def forward(self, hidden_BTD, facts):
        if self.dense is None:
            return {"logits": self.out(self.drop(facts["pooled"]))}
        x_BD = facts["whole"] if facts.get("place") is None else at_place(hidden_BTD, facts["place"])
        return {"logits": self.out(self.drop(self.act(self.dense(self.drop(x_BD)))))}


class ChoiceHead(PooledHead):
    """Which of several texts: logits (B, choices)."""

    def __init__(self, dim, dropout=0.0, act=None):
        super().__init__(dim, 1, dropout, act)

    def forward(self, hidden_BTD, facts):
        return {"logits": super().forward(hidden_BTD, facts)["logits"].view(-1, facts["choices"])}


class LastTokenHead(nn.Module):
    """A label for a whole text, from its last token that is not padding (GPT-2): logits (B, N)."""

    def __init__(self, dim, labels, pad=None):
        super().__init__()
        self.out, self.pad = nn.Linear(dim, labels, bias=False), pad

    def forward(self, hidden_BTD, facts):
        ids = facts.get("input_ids")
        if ids is None or self.pad is None:
            if self.pad is None and hidden_BTD.shape[0] > 1 and not facts["plain"]:
                raise ValueError("a batch of padded texts needs the padding id (pad) in the model's config")
            return {"logits": self.out(hidden_BTD[:, -1])}
        last = ((ids != self.pad) * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)
        return {"logits": self.out(at_place(hidden_BTD, last))}


class DoubleHead(nn.Module):
    """GPT's two heads: next token, and which of several texts, from the state at mc_token_ids (the last token by default)."""

    def __init__(self, language, dim, dropout=0.0):
        super().__init__()
        self.language, self.choice, self.drop = language, nn.Linear(dim, 1), Dropout(dropout)

    def forward(self, hidden_BTD, facts):
        picked = hidden_BTD[:, -1] if facts.get("place") is None else at_place(hidden_BTD, facts["place"])
        scores = self.choice(self.drop(picked)).view(-1, facts["choices"])
        if facts.get("labels") is not None:
            return self.language(hidden_BTD, facts) | {"mc_logits": scores}
        return {"logits": self.language(hidden_BTD)["logits"].unflatten(0, (-1, facts["choices"])), "mc_logits": scores}


class DetectionHead(nn.Module):
    """Was this token replaced? One score a token, (B, T) (ELECTRA, 2020, section 2)."""

    def __init__(self, dim, act="gelu"):
        super().__init__()
        self.dense, self.act, self.out = nn.Linear(dim, dim), activation(act), nn.Linear(dim, 1)

    def forward(self, hidden_BTD, facts):
        return {"logits": self.out(self.act(self.dense(hidden_BTD)))[..., 0]}


class PretrainingHead(nn.Module):
    """Masked tokens, and a second score of the pooled vector: next sentence (BERT) or sentence order (ALBERT), named `second`."""

    def __init__(self, language, dim, second="seq_relationship_logits", dropout=0.0):
        super().__init__()
        self.language, self.next, self.second, self.drop = language, nn.Linear(dim, 2), second, Dropout(dropout)

    def forward(self, hidden_BTD, facts):
        language = self.language(hidden_BTD, facts)
        if "logits" in language:
            language = {"prediction_logits": language["logits"]}
        return language | {self.second: self.next(self.drop(facts["pooled"]))}
