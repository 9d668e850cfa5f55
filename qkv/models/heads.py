"""What stands on top of a stack. A head maps (hidden, facts) to named tensors.

Dims: B batch, T tokens, D model, V vocabulary, N labels.
"""

import torch
from torch import nn

from ..core.layers import Dropout, LayerNorm, activation
from .loss import token_loss


class LanguageHead(nn.Module):
    """Scores of every token of the vocabulary.

    weight: an embedding's (V, D) to share. scale: factor on the hidden states (T5). transform: name of an activation, for BERT's
    extra layer before the output matrix. steady: a bias that is not trained (Marian).
    """

    def __init__(self, dim, vocab, weight=None, bias=False, scale=1.0, transform=None, eps=1e-12, steady=False):
        super().__init__()
        self.scale = scale
        self.dense = nn.Linear(dim, dim) if transform else None
        self.act = activation(transform) if transform else None
        self.norm = LayerNorm(dim, eps) if transform else None
        self.out = nn.Linear(dim, vocab, bias=bias)
        if weight is not None:
            self.out.weight = weight
        if steady:
            self.register_buffer("steady", torch.zeros(1, vocab))

    @property
    def bias(self):
        """(V,) all that is added to the scores, or None."""
        steady = self.steady[0] if hasattr(self, "steady") else None
        return self.out.bias if steady is None else steady if self.out.bias is None else self.out.bias + steady

    def forward(self, hidden_BTD, facts=None):
        """logits (..., V); or, where facts["labels"] (N,) are given, the loss alone: loss, plain and hits of `token_loss`."""
        x = hidden_BTD if self.scale == 1.0 else hidden_BTD * self.scale
        if self.dense is not None:
            x = self.norm(self.act(self.dense(x)))
        labels = (facts or {}).get("labels")
        if labels is not None:
            loss, plain, hits = token_loss(x.flatten(0, -2), self.out.weight, self.bias, labels, facts["smoothing"])
            return {"loss": loss, "plain": plain, "hits": hits}
        logits = self.out(x)
        return {"logits": logits + self.steady if hasattr(self, "steady") else logits}


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
    """A label for a whole text, from the pooled vector: logits (B, N)."""

    def __init__(self, dim, labels, dropout=0.0):
        super().__init__()
        self.drop, self.out = Dropout(dropout), nn.Linear(dim, labels)

    def forward(self, hidden_BTD, facts):
        return {"logits": self.out(self.drop(facts["pooled"]))}


class ChoiceHead(PooledHead):
    """Which of several texts: logits (B, choices)."""

    def __init__(self, dim, dropout=0.0):
        super().__init__(dim, 1, dropout)

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
        return {"logits": self.out(hidden_BTD[torch.arange(len(last), device=ids.device), last])}


class PretrainingHead(nn.Module):
    """BERT's two objectives at once: masked tokens and next sentence."""

    def __init__(self, language, dim):
        super().__init__()
        self.language, self.next = language, nn.Linear(dim, 2)

    def forward(self, hidden_BTD, facts):
        return {"prediction_logits": self.language(hidden_BTD)["logits"], "seq_relationship_logits": self.next(facts["pooled"])}
