"""T5 1.0 and 1.1 (Raffel et al., 2020): relative position buckets, RMS norms, no biases."""

from ..checkpoints.config import Key
from .bert import both
from .encoder import Encoder
from .encoder_decoder import EncoderDecoder
from .family import SPECIAL, Family, activation_name, arguments, inside


def _side(theirs, ours, n, cross, gated):
    """Rows of one stack; n is its layer counter."""
    block, b = f"{{p}}{theirs}.block.{n}.layer.", f"{ours}blocks.{n}."
    attention = lambda at, name, ours: [(f"{block}{at}.{name}.{x}.weight", f"{b}{ours}.f.{x}.weight") for x in "qkvo"]
    norm = lambda at, ours: (f"{block}{at}.layer_norm.weight", f"{b}{ours}.pre.weight")
    last = 2 if cross else 1
    dense = f"{block}{last}.DenseReluDense."
    return [
        *attention(0, "SelfAttention", "attn"),
        (f"{{p}}{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{ours}shared.weight"),
        norm(0, "attn"),
        *([*attention(1, "EncDecAttention", "cross"), norm(1, "cross")] if cross else []),
        *(
            [(dense + "wi_0.weight", f"{b}ffn.f.gate.weight"), (dense + "wi_1.weight", f"{b}ffn.f.up.weight")]
            if gated
            else [(dense + "wi.weight", f"{b}ffn.f.up.weight")]
        ),
        (dense + "wo.weight", f"{b}ffn.f.down.weight"),
        norm(last, "ffn"),
        (f"{{p}}{theirs}.final_layer_norm.weight", f"{ours}norm.weight"),
    ]


def _table(cfg):
    gated = str(cfg.ffn).startswith("gated")
    if isinstance(cfg, Encoder):
        return [
            ("{p}shared.weight", "embed.token.weight"),
            ("{p}encoder.embed_tokens.weight", "embed.token.weight"),
            *_side("encoder", "", "{i}", False, gated),
        ]
    return [
        ("{p}shared.weight", "encoder_embed.token.weight"),
        ("{p}encoder.embed_tokens.weight", "encoder_embed.token.weight"),
        ("{p}decoder.embed_tokens.weight", "decoder_embed.token.weight"),
        *_side("encoder", "encoder.", "{i}", False, gated),
        *_side("decoder", "decoder.", "{j}", True, gated),
    ]


def _before(raw, cls):
    kind = raw.pop("feed_forward_proj", "relu")
    gated, act = kind.startswith("gated-"), kind.removeprefix("gated-")
    act = "gelu_new" if kind == "gated-gelu" else activation_name(act)
    for key, value in (("is_gated_act", gated), ("dense_act_fn", act)):  # written by the reference, derived here
        if raw.pop(key, value) != value:
            raise ValueError(f"config.json: {key} does not agree with feed_forward_proj={kind!r}")
    dropout = raw.get("dropout_rate", 0.1)
    raw["_ffn"] = f"{'gated' if gated else 'plain'}({act}, bias=False, dropout={dropout})"
    buckets, far = raw.pop("relative_attention_num_buckets", 32), raw.pop("relative_attention_max_distance", 128)
    raw["_position"] = f"t5(buckets={buckets}, far={far})"
    tied = raw.get("tie_word_embeddings", True)
    scaled = raw.pop("scale_decoder_outputs", tied)
    raw["_scaled"] = scaled
    raw["num_decoder_layers"] = raw.get("num_decoder_layers") or raw.get("num_layers", 6)
    raw.setdefault("pad_token_id", 0)
    raw.setdefault("eos_token_id", 1)
    raw["decoder_start_token_id"] = raw.get("decoder_start_token_id", raw["pad_token_id"])
    return raw


def _after(raw, cfg):
    ffn, (buckets, far) = raw.pop("_ffn"), arguments(raw.pop("_position"), "buckets", "far")
    act = inside(ffn)
    gated = ffn.startswith("gated")
    raw["feed_forward_proj"] = ("gated-" if gated else "") + ("gelu" if gated and act == "gelu_new" else act)
    raw |= {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": far}
    scaled = raw.pop("_scaled", False)
    if scaled != raw["tie_word_embeddings"] and isinstance(cfg, EncoderDecoder):
        raw["scale_decoder_outputs"] = scaled
    return raw | {"is_encoder_decoder": isinstance(cfg, EncoderDecoder)}


T5 = Family(
    name="t5",
    objective="denoise(random_spans)",
    config=EncoderDecoder,
    keys=(
        Key("vocab_size", "vocab", 32128),
        Key("d_model", "dim", 512),
        Key("d_kv", "head_dim", 64),
        Key("d_ff", "hidden", 2048),
        Key("num_layers", "layers", 6),
        Key("num_decoder_layers", "decoder_layers", None),
        Key("num_heads", "heads", 8),
        Key("dropout_rate", "dropout", 0.1),
        Key("dropout_rate", "attn_dropout", 0.1),
        Key("layer_norm_epsilon", "norm_eps", 1e-6),
        Key("n_positions", "length", 512),
        Key("tie_word_embeddings", "tie", True),
        Key("_ffn", "ffn", "plain(relu, bias=False)"),
        Key("_position", "position", "t5"),
        Key("_scaled", "lm_scaled", False),
        Key("decoder_start_token_id", "start", 0),
        *SPECIAL,
    ),
    before=_before,
    after=_after,
    neutral=("is_encoder_decoder", "classifier_dropout", "output_past"),
    constants=dict(
        norm="rms",
        order="pre",
        final_norm=True,
        biases="",
        kernel="softmax(scale=1.0)",
        init="t5",
        embed_norm=False,
        types=0,
        numbering="index",
    ),  # fmt: skip
    classes={
        "T5ForConditionalGeneration": dict(output="lm"),
        "T5WithLMHeadModel": dict(output="lm"),  # its name until 2020
        "T5Model": dict(output="hidden"),
        "T5ForSequenceClassification": dict(output="sequence"),
        "T5ForQuestionAnswering": dict(output="span"),
        "T5ForTokenClassification": dict(
            config=Encoder, output="tokens", pooler=False, pattern="full", transform=None, lm_bias=True, tie=True
        ),
        "T5EncoderModel": dict(config=Encoder, output="hidden", pooler=False, pattern="full", transform=None, lm_bias=True, tie=True),
    },
    table=_table,
    heads={
        "lm": (("lm_head.weight", "head.out.weight"),),
        "sequence": (*both("classification_head.dense", "head.dense"), *both("classification_head.out_proj", "head.out")),
        "span": tuple(both("qa_outputs", "head.out")),
        "tokens": tuple(both("classifier", "head.out")),
    },
    prefixes={"T5ForSequenceClassification": "transformer.", "T5ForTokenClassification": "transformer."},
    buffers=(r"EncDecAttention\.relative_attention_bias\.weight$",),
    optional=(),
    aliases=(),
    presets={
        "t5-nano": dict(
            vocab=2048,
            length=128,
            dim=128,
            layers=2,
            heads=2,
            hidden=512,
            head_dim=64,
            decoder_layers=2,
            dropout=0.0,
            attn_dropout=0.0,
            ffn="plain(relu, bias=False, dropout=0.0)",
        ),  # fmt: skip
        "t5-mini": dict(vocab=8192, length=256, dim=256, layers=4, heads=4, hidden=1024, head_dim=64, decoder_layers=4),
        "t5-small": {},
        "t5-base": dict(dim=768, hidden=3072, layers=12, decoder_layers=12, heads=12),
        "t5-large": dict(dim=1024, hidden=4096, layers=24, decoder_layers=24, heads=16),
        "t5-v1.1-small": dict(
            hidden=1024, layers=8, decoder_layers=8, heads=6, ffn="gated(gelu_new, bias=False, dropout=0.1)", tie=False, lm_scaled=False
        ),
        "t5-v1.1-base": dict(
            dim=768,
            hidden=2048,
            layers=12,
            decoder_layers=12,
            heads=12,
            ffn="gated(gelu_new, bias=False, dropout=0.1)",
            tie=False,
            lm_scaled=False,
        ),  # fmt: skip
    },
)
FAMILIES = (T5,)
