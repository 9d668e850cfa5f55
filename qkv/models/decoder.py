"""Decoder: reads left to right and predicts the next token (GPT, LLaMA, PaLM ...)."""

from dataclasses import dataclass

from ..core import Cache, Context, Stack
from . import heads
from .shape import Output, Shape, Slot, initialise, locate, make_blocks, make_embedding, make_norm, make_position, one_of


@dataclass(frozen=True, kw_only=True)
class Decoder(Shape):
    """output: hidden, lm (next token), sequence (a label a text, from its last token), tokens (a label a token), span, double (next
    token, and which of several texts). lm_bias: a bias on the vocabulary."""

    pattern: Slot = "causal"
    init: str = "scaled"
    lm_bias: bool = False
    output: str = "lm"

    def build(self):
        return initialise(DecoderModel(self), self)


class DecoderModel(Stack):
    """A stack with an embedding before it and a head behind it."""

    def __init__(self, cfg):
        one_of("output", cfg.output, ("hidden", "lm", "sequence", "tokens", "span", "double"))
        position = make_position(cfg, heads=cfg.heads, causal=True)
        blocks = make_blocks(cfg, layers=cfg.layers, pattern=cfg.pattern, heads=cfg.heads, hidden=cfg.wide, position=position)
        norm = make_norm(cfg) if cfg.final_norm else None
        super().__init__(blocks, norm, position if position.site == "stack" else None)
        self.config = cfg
        self.embed = make_embedding(cfg, position)
        self.head = self.make_head(cfg)

    def make_head(self, cfg):
        if cfg.output in ("lm", "double"):
            language = heads.LanguageHead(cfg.dim, cfg.vocab, self.embed.token.weight if cfg.tie else None, cfg.lm_bias)
            return language if cfg.output == "lm" else heads.DoubleHead(language, cfg.dim, cfg.dropout)
        if cfg.output == "sequence":
            return heads.LastTokenHead(cfg.dim, cfg.labels, cfg.pad)
        if cfg.output == "tokens":
            return heads.TokenHead(cfg.dim, cfg.labels, cfg.dropout)
        return heads.SpanHead(cfg.dim) if cfg.output == "span" else None

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, *, token_type_ids=None, inputs_embeds=None,
                documents=None, prefix=None, cache=None, use_cache=False, mc_token_ids=None, at=None, labels=None, smoothing=0.0):  # fmt: skip
        """input_ids (B, T), or (B, choices, T) with output=double, or inputs_embeds (B, T, D); attention_mask (B, past + T), 0 is padding; position_ids (B, T);
        documents (B, T) numbers the documents of a packed row; prefix (B, T) is 1 where all may look (pattern prefix);
        cache: a Cache, which is extended; use_cache: make one if there is none; at: flat indices into (B * T), the only places
        whose logits are wanted; mc_token_ids (B, choices): the token of each text that is judged, the last by default; labels (B * T,), or of the places `at`: their loss is returned in place of the logits (see
        models.loss). Returns logits (B, T, V), hidden (B, T, D), cache."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        cfg = self.config
        choices = place = None
        if cfg.output == "double":
            source = input_ids if input_ids is not None else inputs_embeds
            if source.dim() < 3:
                raise ValueError(f"output=double reads (batch, choices, tokens), not {tuple(source.shape)}")
            choices = source.shape[1]
            flat = lambda t: None if t is None else t.flatten(0, 1)
            input_ids, attention_mask, position_ids, inputs_embeds = map(flat, (input_ids, attention_mask, position_ids, inputs_embeds))
            place = flat(mc_token_ids)
        if token_type_ids is not None and self.embed.types is None:
            raise ValueError("token_type_ids: this model has no token types (types=0)")
        cache = Cache() if cache is None and use_cache else cache
        number, last, toks = locate(
            cfg, input_ids, inputs_embeds, attention_mask, position_ids, cache, documents, prefix, cfg.vocab, packed=True
        )
        x = self.embed(input_ids, number, token_type_ids, inputs_embeds, last)
        losses = []
        hidden = self.run(x, Context(toks, cache=cache, losses=losses))
        out = Output(hidden=hidden)
        if self.head is not None:
            facts = {"input_ids": input_ids, "plain": toks.plain, "labels": labels, "smoothing": smoothing, "at": at}
            out.update(self.head(hidden, facts | {"choices": choices, "place": place}))
        if cache is not None:
            out["cache"] = cache
        return out.with_losses(losses)
