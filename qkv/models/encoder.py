"""Encoder: reads a whole text at once, both ways (BERT and its variants)."""

from dataclasses import dataclass

import torch
from torch import nn

from ..core import Context, Stack
from . import heads
from .shape import Output, Shape, initialise, locate, make_blocks, make_embedding, make_norm, make_position, one_of

POOLED = ("hidden", "sequence", "choice", "next", "pretraining", "pretraining-order")  # these read the pooled vector
LANGUAGE = ("lm", "items", "pretraining", "pretraining-order")
OUTPUTS = ("hidden", *LANGUAGE, "next", "detect", "sequence", "tokens", "span", "choice")


@dataclass(frozen=True, kw_only=True)
class Encoder(Shape):
    """output: hidden, lm (masked tokens), items (the same of things that a user took), sequence, tokens, span, choice, next (next sentence), pretraining (lm and next),
    pretraining-order (lm and sentence order), detect (replaced tokens).
    pooling: what stands for a whole text, its first token or the mean of all. pooler: a tanh layer on that, where the output reads it. classifier: in place of the pooler, the activation of the
    classifier's own layer. transform: activation of the extra layer before the output
    matrix, or none. lm_bias: a bias on the vocabulary. mask_pad: without a mask, the ids `pad` are padding. unsaid: so many last ids are read and never said (a mask). groups: sets of `inner` blocks that the layers share, each set run
    layers / groups times (ALBERT); None: every layer has its own."""

    order: str = "post"
    final_norm: bool = False
    embed_norm: bool = True
    output: str = "lm"
    pooling: str = "first"
    pooler: bool = True
    classifier: str | None = None
    groups: int | None = None
    inner: int = 1
    transform: str | None = "gelu"
    lm_bias: bool = True
    mask_pad: bool = False
    unsaid: int = 0

    @property
    def pooled(self):
        """Is there a pooler, and does the output read it?"""
        return self.pooler and self.output in POOLED and not (self.classifier and self.output in ("sequence", "choice"))

    @property
    def runs(self):
        """Numbers of the blocks as they are run."""
        if self.groups is None:
            return list(range(self.layers))
        return [int(i * self.groups / self.layers) * self.inner + j for i in range(self.layers) for j in range(self.inner)]

    def build(self):
        return initialise(EncoderModel(self), self)


class EncoderModel(Stack):
    """A stack with an embedding before it, and a pooler and a head behind it."""

    def __init__(self, cfg):
        one_of("output", cfg.output, OUTPUTS)
        one_of("pooling", cfg.pooling, ("first", "mean"))
        if cfg.output in POOLED[1:] and not cfg.pooler and not (cfg.classifier and cfg.output in ("sequence", "choice")):
            raise ValueError(f"output={cfg.output} reads the pooled vector; it needs pooler=true")
        if cfg.groups is not None and not 1 <= cfg.groups <= cfg.layers:
            raise ValueError(f"groups={cfg.groups}: must be between 1 and layers={cfg.layers}")
        if cfg.inner < 1 or (cfg.inner > 1 and cfg.groups is None):
            raise ValueError(f"inner={cfg.inner}: must be at least 1, and 1 where no layers are shared (groups)")
        position = make_position(cfg, heads=cfg.heads, causal=False)
        count = max(cfg.runs) + 1
        blocks = make_blocks(cfg, layers=count, pattern=cfg.pattern, heads=cfg.heads, hidden=cfg.wide, position=position)
        super().__init__(blocks, make_norm(cfg) if cfg.final_norm else None, position if position.site == "stack" else None, cfg.runs)
        self.config = cfg
        self.embed = make_embedding(cfg, position)
        self.pool = nn.Linear(cfg.dim, cfg.dim) if cfg.pooled else None
        self.head = self.make_head(cfg)

    def make_head(self, cfg):
        if cfg.output in LANGUAGE:
            tied = self.embed.token.weight if cfg.tie else None
            kind = heads.ItemHead if cfg.output == "items" else heads.LanguageHead
            language = kind(
                cfg.dim, cfg.vocab - cfg.unsaid, tied, cfg.lm_bias, transform=cfg.transform, eps=cfg.norm_eps, width=cfg.embed_dim
            )
            if cfg.output in ("lm", "items"):
                return language
            order = cfg.output == "pretraining-order"
            return heads.PretrainingHead(
                language, cfg.dim, "sop_logits" if order else "seq_relationship_logits", cfg.dropout if order else 0
            )
        if cfg.output == "next":
            return heads.PooledHead(cfg.dim, 2)
        if cfg.output == "detect":
            return heads.DetectionHead(cfg.dim, cfg.transform or "gelu")
        if cfg.output == "sequence":
            return heads.PooledHead(cfg.dim, cfg.labels, cfg.dropout, cfg.classifier)
        if cfg.output == "tokens":
            return heads.TokenHead(cfg.dim, cfg.labels, cfg.dropout)
        if cfg.output == "choice":
            return heads.ChoiceHead(cfg.dim, cfg.dropout, cfg.classifier)
        return heads.SpanHead(cfg.dim) if cfg.output == "span" else None

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, *, inputs_embeds=None,
                documents=None, at=None, labels=None, smoothing=0.0):  # fmt: skip
        """input_ids (B, T), or (B, choices, T) with output=choice, or inputs_embeds (B, T, D); attention_mask of the same shape,
        0 is padding; token_type_ids and position_ids likewise; documents (B, T) numbers the documents of a packed row; at: flat
        indices into (B * T), the only places whose logits are wanted; labels (N,) of those places: their loss is returned in place
        of the logits (see models.loss).
        Returns hidden (B, T, D), pooled (B, D) if there is a pooler, and what the head names."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if token_type_ids is not None and self.embed.types is None:
            raise ValueError("token_type_ids: this model has no token types (types=0)")
        facts, losses = {"labels": labels, "smoothing": smoothing, "at": at}, []
        if self.config.output == "choice":
            source = input_ids if input_ids is not None else inputs_embeds
            if source.dim() < 3:
                raise ValueError(f"output=choice reads (batch, choices, tokens), not {tuple(source.shape)}")
            facts["choices"] = source.shape[1]
            flat = lambda t: None if t is None else t.flatten(0, 1)
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds = map(
                flat, (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
            )
        if self.config.mask_pad and attention_mask is None and input_ids is not None:
            attention_mask = input_ids != self.config.pad
        number, last, toks = locate(
            self.config, input_ids, inputs_embeds, attention_mask, position_ids, None, documents, vocab=self.config.vocab
        )
        hidden = self.run(self.embed(input_ids, number, token_type_ids, inputs_embeds, last), Context(toks, losses=losses))
        out = Output(hidden=hidden)
        facts["whole"] = hidden[:, 0] if self.config.pooling == "first" else mean(hidden, toks)
        if self.pool is not None:
            out["pooled"] = facts["pooled"] = torch.tanh(self.pool(facts["whole"]))
        if self.head is not None:
            out.update(self.head(hidden, facts))
        return out.with_losses(losses)


def mean(hidden_BTD, toks):
    """(B, D): the mean of a row's tokens, padding left out."""
    if toks.plain:
        return hidden_BTD.mean(1)
    kept = (toks.position >= 0)[..., None].to(hidden_BTD.dtype)
    return (hidden_BTD * kept).sum(1) / kept.sum(1).clamp(min=1)
