"""The 2017 Transformer (Vaswani et al.): sinusoids, post-norm, one shared embedding. Published layouts: MarianMT, FSMT, and
torch.nn.Transformer's (stacks without embeddings)."""

from typing import Any

from ..checkpoints.config import Key
from ..checkpoints.table import stacked
from .encoder_decoder import EncoderDecoder
from .family import SPECIAL, Family, activation_name, inside


def _both(theirs, ours):
    return [(f"{theirs}.{leaf}", f"{ours}.{leaf}") for leaf in ("weight", "bias")]


def fairseq(side, n, norm="post"):
    """Rows of one fairseq-like stack (Marian, FSMT, BART)."""
    theirs, ours = f"{{p}}{side}.layers.{n}.", f"{side}.blocks.{n}."
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
    rows = [r for a, b in names.items() for r in _both(f"{theirs}self_attn.{a}", f"{ours}attn.f.{b}")]
    rows += _both(f"{theirs}self_attn_layer_norm", f"{ours}attn.{norm}")
    if side == "decoder":
        rows += [r for a, b in names.items() for r in _both(f"{theirs}encoder_attn.{a}", f"{ours}cross.f.{b}")]
        rows += _both(f"{theirs}encoder_attn_layer_norm", f"{ours}cross.{norm}")
    rows += _both(f"{theirs}fc1", f"{ours}ffn.f.up") + _both(f"{theirs}fc2", f"{ours}ffn.f.down")
    return rows + _both(f"{theirs}final_layer_norm", f"{ours}ffn.{norm}")


def published_keys(vocab, length, layers=12, hidden=4096):
    return (
        Key("d_model", "dim", 1024),
        Key("encoder_layers", "layers", layers),
        Key("decoder_layers", "decoder_layers", layers),
        Key("encoder_attention_heads", "heads", 16),
        Key("decoder_attention_heads", "decoder_heads", 16),
        Key("encoder_ffn_dim", "hidden", hidden),
        Key("decoder_ffn_dim", "decoder_hidden", hidden),
        Key("max_position_embeddings", "length", length),
        Key("_ffn", "ffn", "plain(relu)"),
        Key("scale_embedding", "scaled", False),
        Key("dropout", "dropout", 0.1),
        Key("attention_dropout", "attn_dropout", 0.0),
        Key("init_std", "init_std", 0.02),
        Key("decoder_start_token_id", "start", None),
        *vocab,
        *SPECIAL,
    )


def read_published(act, scaled, ids):
    def before(raw, cls):
        drop = raw.pop("activation_dropout", 0.0)
        raw["_ffn"] = f"plain({activation_name(raw.pop('activation_function', act))}" + (f", dropout={drop})" if drop else ")")
        raw.setdefault("scale_embedding", scaled)
        return ids | raw

    return before


def write_published(raw, cfg):
    ffn = raw.pop("_ffn")
    drop = float(ffn.split("dropout=")[1].rstrip(")")) if "dropout=" in ffn else 0.0
    return raw | {"activation_function": inside(ffn), "activation_dropout": drop, "is_encoder_decoder": True}


COMMON = dict(order="post", final_norm=False, norm_eps=1e-5, embed_norm=False, pad_trains=False)
LEGACY = ("is_encoder_decoder", "normalize_before", "normalize_embedding", "static_position_embeddings", "add_bias_logits",
          "add_final_layer_norm", "extra_pos_embeddings", "num_hidden_layers", "classif_dropout", "classifier_dropout")  # fmt: skip


def _marian_before(raw, cls):
    raw = read_published("gelu", False, {"decoder_start_token_id": 58100, "pad_token_id": 58100, "eos_token_id": 0})(raw, cls)
    target = raw.pop("decoder_vocab_size", None)
    shared = raw.pop("share_encoder_decoder_embeddings", True)
    raw["_target"] = None if shared else target or raw.get("vocab_size", 58101)
    return raw


def _marian_after(raw, cfg):
    target = raw.pop("_target")
    return write_published(raw, cfg) | {"share_encoder_decoder_embeddings": target is None, "decoder_vocab_size": target or cfg.vocab}


MARIAN = Family(
    name="marian",
    config=EncoderDecoder,
    keys=published_keys(
        (Key("vocab_size", "vocab", 58101), Key("_target", "target_vocab", None), Key("tie_word_embeddings", "tie", True)), 1024
    ),
    before=_marian_before,
    after=_marian_after,
    neutral=LEGACY,
    constants=COMMON | dict(position="sinusoid(layout=halves)", lm_bias="steady", init="normal"),
    classes={"MarianMTModel": dict(output="lm"), "MarianModel": dict(output="hidden")},
    table=lambda cfg: (
        *([("{p}shared.weight", "encoder_embed.token.weight")] if cfg.target_vocab is None else []),
        ("{p}encoder.embed_tokens.weight", "encoder_embed.token.weight"),
        ("{p}decoder.embed_tokens.weight", "decoder_embed.token.weight"),
        ("{p}encoder.embed_positions.weight", "encoder_embed.position.weight"),
        ("{p}decoder.embed_positions.weight", "decoder_embed.position.weight"),
        *fairseq("encoder", "{i}"),
        *fairseq("decoder", "{j}"),
        ("lm_head.weight", "head.out.weight"),
        ("final_logits_bias", "head.steady"),
    ),
    prefix="model.",
    bare=("MarianModel",),
    optional=("encoder_embed.position.weight", "decoder_embed.position.weight"),
    presets={
        "opus-mt-en-de": dict(
            dim=512,
            layers=6,
            decoder_layers=6,
            heads=8,
            decoder_heads=8,
            hidden=2048,
            decoder_hidden=2048,
            length=512,
            ffn="plain(silu)",
            scaled=True,
        )
    },  # fmt: skip
)


def _fsmt_before(raw, cls):
    raw = read_published("relu", True, {"decoder_start_token_id": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2})(raw, cls)
    pad = raw["pad_token_id"]
    raw["_position"] = f"sinusoid(layout=fairseq, offset={pad + 1}, zero={pad})"  # positions are counted from pad + 1
    return raw


def _fsmt_after(raw, cfg):
    if cfg.target_vocab is None:
        raise ValueError("FSMT has two vocabularies")
    raw.pop("_position")
    return write_published(raw, cfg)


FSMT = Family(
    name="fsmt",
    config=EncoderDecoder,
    keys=published_keys(
        (
            Key("src_vocab_size", "vocab", 42024),
            Key("tgt_vocab_size", "target_vocab", 42024),
            Key("tie_word_embeddings", "tie", False),
            Key("_position", "position", "sinusoid"),
        ),
        1024,
    ),
    before=_fsmt_before,
    after=_fsmt_after,
    neutral=(*LEGACY, "langs", "vocab_size", "decoder"),
    constants=COMMON | dict(numbering="tokens", init="normal"),
    classes={"FSMTForConditionalGeneration": dict(output="lm"), "FSMTModel": dict(output="hidden")},
    table=(
        ("{p}encoder.embed_tokens.weight", "encoder_embed.token.weight"),
        ("{p}decoder.embed_tokens.weight", "decoder_embed.token.weight"),
        ("{p}encoder.embed_positions.weight", "encoder_embed.position.weight"),
        ("{p}decoder.embed_positions.weight", "decoder_embed.position.weight"),
        *fairseq("encoder", "{i}"),
        *fairseq("decoder", "{j}"),
        ("{p}decoder.output_projection.weight", "head.out.weight"),
    ),
    prefix="model.",
    bare=("FSMTModel",),
    presets={"wmt19-en-de": dict(layers=6, decoder_layers=6, hidden=8192, decoder_hidden=8192)},
)


def _torch_stack(side, n):
    theirs, ours = f"{side}.layers.{n}.", f"{side}.blocks.{n}."
    branches = ["attn", "cross", "ffn"] if side == "decoder" else ["attn", "ffn"]
    rows = []
    for name, branch in {"self_attn": "attn", "multihead_attn": "cross"}.items():
        if branch in branches:
            for leaf in ("weight", "bias"):
                rows.append((f"{theirs}{name}.in_proj_{leaf}", [f"{ours}{branch}.f.{x}.{leaf}" for x in "qkv"], stacked(3)))
            rows += _both(f"{theirs}{name}.out_proj", f"{ours}{branch}.f.o")
    rows += _both(f"{theirs}linear1", f"{ours}ffn.f.up") + _both(f"{theirs}linear2", f"{ours}ffn.f.down")
    for order in ("pre", "post"):
        rows += [r for k, b in enumerate(branches) for r in _both(f"{theirs}norm{k + 1}", f"{ours}{b}.{order}")]
    return rows + _both(f"{side}.norm", f"{side}.norm")


def _torch_before(raw, cls):
    drop = raw.get("dropout", 0.1)
    raw["_ffn"] = f"plain({activation_name(raw.pop('activation', 'relu'))}, dropout={drop}, bias={raw.get('bias', True)})"
    raw["_order"] = "pre" if raw.pop("norm_first", False) else "post"
    raw["_biases"] = "qkvo" if raw.pop("bias", True) else ""
    raw["_norm"] = "layer" if raw["_biases"] else "layer(bias=False)"
    return raw


def _torch_after(raw, cfg):
    raw |= {"activation": inside(raw.pop("_ffn")), "norm_first": raw.pop("_order") == "pre", "bias": bool(raw.pop("_biases"))}
    raw.pop("_norm")
    return raw


TORCH = Family(
    name="torch-transformer",
    config=EncoderDecoder,
    keys=(
        Key("d_model", "dim", 512),
        Key("nhead", "heads", 8),
        Key("num_encoder_layers", "layers", 6),
        Key("num_decoder_layers", "decoder_layers", 6),
        Key("dim_feedforward", "hidden", 2048),
        Key("dropout", "dropout", 0.1),
        Key("dropout", "attn_dropout", 0.1),
        Key("layer_norm_eps", "norm_eps", 1e-5),
        Key("_ffn", "ffn", "plain(relu, dropout=0.1)"),
        Key("_order", "order", "post"),
        Key("_biases", "biases", "qkvo"),
        Key("_norm", "norm", "layer"),
    ),
    before=_torch_before,
    after=_torch_after,
    neutral=("batch_first", "device"),
    constants=dict(final_norm=True, position="none", embedded=False, vocab=1, length=1),
    classes={"Transformer": dict(output="hidden")},
    table=(*_torch_stack("encoder", "{i}"), *_torch_stack("decoder", "{j}")),
    arguments={"src": "inputs_embeds", "tgt": "decoder_inputs_embeds", "src_mask": "attention_mask"},
)


PAPER: dict[str, Any] = dict(
    order="post", final_norm=False, norm_eps=1e-5, position="sinusoid", ffn="plain(relu)", length=512, pad=0, bos=1, eos=2, start=1
)
OWN = {
    "transformer-nano": EncoderDecoder(**PAPER, vocab=256, dim=128, layers=2, heads=4, hidden=512, scaled=True),
    "transformer-mini": EncoderDecoder(**PAPER, vocab=8000, dim=256, layers=4, heads=4, hidden=1024, scaled=True, dropout=0.1),
    "transformer-base": EncoderDecoder(**PAPER, vocab=37000, dim=512, layers=6, heads=8, hidden=2048, scaled=True, dropout=0.1),
    "transformer-big": EncoderDecoder(**PAPER, vocab=37000, dim=1024, layers=6, heads=16, hidden=4096, scaled=True, dropout=0.3),
}
FAMILIES = (MARIAN, FSMT, TORCH)
