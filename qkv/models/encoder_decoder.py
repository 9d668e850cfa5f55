"""EncoderDecoder: reads one text, writes another (the 2017 Transformer, T5, BART ...)."""

from dataclasses import dataclass

import torch
from torch import nn

from ..core import Cache, Context, Stack, tokens
from . import heads
from .shape import Output, Shape, Slot, initialise, locate, make_blocks, make_embedding, make_norm, make_position, one_of


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(Shape):
    """decoder_layers, decoder_heads, decoder_hidden: those of the encoder by default. pattern is the decoder's, encoder_pattern the
    encoder's. target_vocab: the decoder's vocabulary; None shares one embedding between both sides. lm_scaled: hidden states
    divided by sqrt(dim) before the output matrix. lm_bias: "none", "trained" or "steady" (kept, not trained). embedded: False reads
    vectors only (inputs_embeds). decoder_ffn: the decoder's feed-forward slot, by default that of the encoder. output: hidden, lm,
    sequence (a label a text, from the decoder's state at the last eos), span (of the text, read by both sides)."""

    pattern: Slot = "causal"
    encoder_pattern: Slot = "full"
    decoder_layers: int | None = None
    decoder_heads: int | None = None
    decoder_hidden: int | None = None
    decoder_ffn: Slot | None = None
    target_vocab: int | None = None
    lm_scaled: bool = False
    lm_bias: str = "none"
    embedded: bool = True
    init: str = "xavier"
    output: str = "lm"

    def build(self):
        return initialise(EncoderDecoderModel(self), self)


class EncoderDecoderModel(nn.Module):
    """Two stacks; the second one's cross-attention reads what the first one wrote."""

    def __init__(self, cfg):
        super().__init__()
        one_of("output", cfg.output, ("hidden", "lm", "sequence", "span"))
        one_of("lm_bias", cfg.lm_bias, ("none", "trained", "steady"))
        self.config = cfg
        sides = (
            ("encoder", cfg.layers, cfg.heads, cfg.wide, cfg.encoder_pattern, False),
            (
                "decoder",
                cfg.decoder_layers or cfg.layers,
                cfg.decoder_heads or cfg.heads,
                cfg.decoder_hidden or cfg.wide,
                cfg.pattern,
                True,
            ),
        )
        for name, layers, n_heads, hidden, pattern, second in sides:
            position = make_position(cfg, heads=n_heads, causal=True) if second else self.encoder_position(cfg)
            blocks = make_blocks(cfg, layers=layers, pattern=pattern, heads=n_heads, hidden=hidden, cross=second, position=position,
                                 ffn=cfg.decoder_ffn if second else None)  # fmt: skip
            shared = position if position.site == "stack" else None
            self.add_module(name, Stack(blocks, make_norm(cfg) if cfg.final_norm else None, shared))
            if cfg.embedded:
                vocab = cfg.target_vocab if second else None
                self.add_module(f"{name}_embed", make_embedding(cfg, position, vocab) if second else self.reader(cfg, position))
        if cfg.embedded and cfg.target_vocab is None and hasattr(self.encoder_embed, "token"):
            self.decoder_embed.token.weight = self.encoder_embed.token.weight
        self.head = None
        if cfg.output in ("sequence", "span") and (cfg.start is None or (cfg.eos is None and cfg.output == "sequence")):
            raise ValueError(f"output={cfg.output} needs start, the id that the decoder begins with, and eos, which ends a text")
        if cfg.output == "sequence":
            self.head = heads.PooledHead(cfg.dim, cfg.labels, 0.0, "tanh")
        if cfg.output == "span":
            self.head = heads.SpanHead(cfg.dim)
        if cfg.output == "lm":
            if not cfg.embedded:
                raise ValueError("output=lm needs an embedding (embedded=true)")
            tied = self.decoder_embed.token.weight if cfg.tie else None
            self.head = heads.LanguageHead(cfg.dim, cfg.target_vocab or cfg.vocab, tied, cfg.lm_bias == "trained", cfg.dim**-0.5 if cfg.lm_scaled else 1.0,
                                           steady=cfg.lm_bias == "steady")  # fmt: skip

    def encoder_position(self, cfg):
        return make_position(cfg, heads=cfg.heads, causal=False)

    def reader(self, cfg, position):
        """What makes vectors of the text to read."""
        return make_embedding(cfg, position)

    def encode(self, input_ids=None, attention_mask=None, inputs_embeds=None, losses=None):
        """(B, S) -> hidden (B, S, D) and its Tokens. losses: a list that takes the auxiliary losses of parts."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, the text to read")
        number, last, toks = locate(self.config, input_ids, inputs_embeds, attention_mask, None, vocab=self.config.vocab)
        x = inputs_embeds if not self.config.embedded else self.encoder_embed(input_ids, number, None, inputs_embeds, last)
        return self.encoder(x, Context(toks, losses=[] if losses is None else losses)), toks

    def shifted(self, ids_BT):
        """The text behind the start token: what the decoder reads where it is given nothing else (BART, 2020, section 3)."""
        return torch.cat([ids_BT.new_full((len(ids_BT), 1), self.config.start), ids_BT[:, :-1]], 1)

    def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None, decoder_attention_mask=None, *, inputs_embeds=None,
                decoder_inputs_embeds=None, decoder_position_ids=None, encoder_hidden=None, cache=None, use_cache=False, at=None,
                labels=None, smoothing=0.0, input_features=None):  # fmt: skip
        """input_ids (B, S) or input_features (B, M, F) of a model that hears, or inputs_embeds (B, S, D), or encoder_hidden (B, S, D) as returned before; decoder_input_ids (B, T) or
        decoder_inputs_embeds; masks of the same shapes, 0 is padding (the decoder's covers the cached past too); decoder_position_ids (B, T); with a cache the
        encoder runs at the first call only; at: flat indices into (B * T), the only places whose logits are wanted;
        labels (B * T,): their loss is returned in place of the logits (see models.loss).
        Returns logits (B, T, V), hidden (B, T, D), encoder_hidden (B, S, D), cache."""
        cfg = self.config
        if decoder_input_ids is not None and decoder_inputs_embeds is not None:
            raise ValueError("give either decoder_input_ids or decoder_inputs_embeds")
        if decoder_input_ids is None and decoder_inputs_embeds is None and cfg.output in ("sequence", "span") and input_ids is not None:
            decoder_input_ids = self.shifted(input_ids)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("decoder_input_ids are missing: the tokens written so far, beginning with the start token")
        if not cfg.embedded and (input_ids is not None or decoder_input_ids is not None):
            raise ValueError("this model has no embedding: give inputs_embeds and decoder_inputs_embeds")
        cache = Cache() if cache is None and use_cache else cache
        losses = []

        def make():
            if encoder_hidden is None:
                return self.encode(input_ids if input_features is None else input_features, attention_mask, inputs_embeds, losses)
            valid = None if attention_mask is None else attention_mask.bool()
            return encoder_hidden, tokens(encoder_hidden.shape[1], valid=valid, device=encoder_hidden.device)

        memory, memory_tokens = make() if cache is None else cache.once(self, make)
        number, last, toks = locate(
            cfg,
            decoder_input_ids,
            decoder_inputs_embeds,
            decoder_attention_mask,
            decoder_position_ids,
            cache,
            vocab=cfg.target_vocab or cfg.vocab,
        )
        x = decoder_inputs_embeds if not cfg.embedded else self.decoder_embed(decoder_input_ids, number, None, decoder_inputs_embeds, last)
        hidden = self.decoder(x, Context(toks, memory, memory_tokens, cache, losses=losses))
        out = Output(hidden=hidden, encoder_hidden=memory)
        if self.head is not None:
            facts = {"labels": labels, "smoothing": smoothing, "at": at}
            if cfg.output == "sequence":
                facts["place"] = self.ends(input_ids)
            out.update(self.head(hidden, facts))
        if cache is not None:
            out["cache"] = cache
        return out.with_losses(losses)

    def ends(self, ids_BT):
        """Where the last eos of each row is."""
        if ids_BT is None:
            raise ValueError("output=sequence finds the end of a text by its ids; give input_ids")
        ends = [self.config.eos] if isinstance(self.config.eos, int) else list(self.config.eos)
        there = torch.isin(ids_BT, torch.tensor(ends, device=ids_BT.device))
        if not bool(there.any(1).all()):
            raise ValueError(f"row {int((~there.any(1)).nonzero()[0])} has no end token (eos={self.config.eos}); every text must hold one")
        return (there * torch.arange(1, ids_BT.shape[1] + 1, device=ids_BT.device)).argmax(1)
