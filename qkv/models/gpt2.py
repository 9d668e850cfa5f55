"""GPT-2 (Radford et al., 2019)."""

from ..checkpoints.config import Key
from ..checkpoints.table import stacked, then, transposed
from .decoder import Decoder
from .family import SPECIAL, Family, activation_name, inside

A, F = "blocks.{i}.attn.f.", "blocks.{i}.ffn.f."
QKV = lambda leaf: [f"{A}{x}.{leaf}" for x in "qkv"]
TABLE = (
    ("{p}wte.weight", "embed.token.weight"),
    ("{p}wpe.weight", "embed.position.weight"),
    ("{p}h.{i}.ln_1.weight", "blocks.{i}.attn.pre.weight"),
    ("{p}h.{i}.ln_1.bias", "blocks.{i}.attn.pre.bias"),
    ("{p}h.{i}.attn.c_attn.weight", QKV("weight"), then(transposed, stacked(3))),
    ("{p}h.{i}.attn.c_attn.bias", QKV("bias"), stacked(3)),
    ("{p}h.{i}.attn.c_proj.weight", A + "o.weight", transposed),
    ("{p}h.{i}.attn.c_proj.bias", A + "o.bias"),
    ("{p}h.{i}.ln_2.weight", "blocks.{i}.ffn.pre.weight"),
    ("{p}h.{i}.ln_2.bias", "blocks.{i}.ffn.pre.bias"),
    ("{p}h.{i}.mlp.c_fc.weight", F + "up.weight", transposed),
    ("{p}h.{i}.mlp.c_fc.bias", F + "up.bias"),
    ("{p}h.{i}.mlp.c_proj.weight", F + "down.weight", transposed),
    ("{p}h.{i}.mlp.c_proj.bias", F + "down.bias"),
    ("{p}ln_f.weight", "norm.weight"),
    ("{p}ln_f.bias", "norm.bias"),
)
HEADS = {
    "lm": (("lm_head.weight", "head.out.weight"),),
    "sequence": (("score.weight", "head.out.weight"),),
    "tokens": (("classifier.weight", "head.out.weight"), ("classifier.bias", "head.out.bias")),
    "span": (("qa_outputs.weight", "head.out.weight"), ("qa_outputs.bias", "head.out.bias")),
    "double": (
        ("lm_head.weight", "head.language.out.weight"),
        ("multiple_choice_head.summary.weight", "head.choice.weight"),
        ("multiple_choice_head.summary.bias", "head.choice.bias"),
    ),
}


def _published(raw, cls):
    raw.setdefault("bos_token_id", 50256)
    raw.setdefault("eos_token_id", 50256)
    for key in ("embd_pdrop",):  # one dropout for embedding and branches here
        if key in raw and raw[key] != raw.get("resid_pdrop", 0.1):
            raw["resid_pdrop"] = max(raw[key], raw.get("resid_pdrop", 0.1))
    return raw


GPT2 = Family(
    name="gpt2",
    config=Decoder,
    keys=(
        Key("vocab_size", "vocab", 50257),
        Key("n_positions", "length", 1024),
        Key("n_embd", "dim", 768),
        Key("n_layer", "layers", 12),
        Key("n_head", "heads", 12),
        Key("n_inner", "hidden", None),
        Key("activation_function", "ffn", "gelu_new", lambda v: f"plain({activation_name(v)})", inside),
        Key("resid_pdrop", "dropout", 0.1),
        Key("attn_pdrop", "attn_dropout", 0.1),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
        Key("initializer_range", "init_std", 0.02),
        Key("tie_word_embeddings", "tie", True),
        *SPECIAL,
    ),
    neutral=(
        "embd_pdrop",
        "n_ctx",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "classifier_dropout",
        "hidden_dropout",
    ),  # fmt: skip
    fixed={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,)},
    before=_published,
    after=lambda raw, cfg: raw | {"embd_pdrop": cfg.dropout},
    classes={
        "GPT2LMHeadModel": dict(output="lm"),
        "GPT2Model": dict(output="hidden"),
        "GPT2ForSequenceClassification": dict(output="sequence"),
        "GPT2ForTokenClassification": dict(output="tokens"),
        "GPT2ForQuestionAnswering": dict(output="span"),
        "GPT2DoubleHeadsModel": dict(output="double", labels=1),
    },
    table=TABLE,
    heads=HEADS,
    prefix="transformer.",
    bare=("GPT2Model",),
    buffers=(r"attn\.bias$", r"attn\.masked_bias$"),
    presets={
        "gpt-nano": dict(vocab=65, bos=5, eos=6, length=64, dim=128, layers=4, heads=4, ffn="plain(gelu)", dropout=0.0, attn_dropout=0.0),
        "gpt-mini": dict(vocab=4096, bos=5, eos=6, length=256, dim=256, layers=4, heads=4, dropout=0.0, attn_dropout=0.0),
        "gpt2": {},
        "gpt2-medium": dict(dim=1024, layers=24, heads=16),
        "gpt2-large": dict(dim=1280, layers=36, heads=20),
        "gpt2-xl": dict(dim=1600, layers=48, heads=25),
    },
)
FAMILIES = (GPT2,)
