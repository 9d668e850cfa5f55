"""BERT (Devlin et al., 2018): masked tokens, next sentence, and the ways it is fine-tuned."""

from ..checkpoints.config import Key
from .encoder import Encoder
from .family import SPECIAL, Family, activation_name, inside

A, F = "blocks.{i}.attn.f.", "blocks.{i}.ffn.f."
L = "{p}encoder.layer.{i}."
both = lambda theirs, ours: [(f"{theirs}.{leaf}", f"{ours}.{leaf}") for leaf in ("weight", "bias")]
LAYERS = (
    ("{p}embeddings.word_embeddings.weight", "embed.token.weight"),
    ("{p}embeddings.position_embeddings.weight", "embed.position.weight"),
    ("{p}embeddings.token_type_embeddings.weight", "embed.types.weight"),
    *both("{p}embeddings.LayerNorm", "embed.norm"),
    *both(L + "attention.self.query", A + "q"),
    *both(L + "attention.self.key", A + "k"),
    *both(L + "attention.self.value", A + "v"),
    *both(L + "attention.output.dense", A + "o"),
    *both(L + "attention.output.LayerNorm", "blocks.{i}.attn.post"),
    *both(L + "intermediate.dense", F + "up"),
    *both(L + "output.dense", F + "down"),
    *both(L + "output.LayerNorm", "blocks.{i}.ffn.post"),
    *both("{p}pooler.dense", "pool"),
)


def _language(h):
    return (
        ("cls.predictions.bias", h + "out.bias"),
        *both("cls.predictions.transform.dense", h + "dense"),
        *both("cls.predictions.transform.LayerNorm", h + "norm"),
        ("cls.predictions.decoder.weight", h + "out.weight"),
    )


LABEL = tuple(both("classifier", "head.out"))
HEADS = {
    "lm": _language("head."),
    "pretraining": (*_language("head.language."), *both("cls.seq_relationship", "head.next")),
    "next": tuple(both("cls.seq_relationship", "head.out")),
    "sequence": LABEL,
    "tokens": LABEL,
    "choice": LABEL,
    "span": tuple(both("qa_outputs", "head.out")),
}

BERT = Family(
    name="bert",
    config=Encoder,
    keys=(
        Key("vocab_size", "vocab", 30522),
        Key("hidden_size", "dim", 768),
        Key("num_hidden_layers", "layers", 12),
        Key("num_attention_heads", "heads", 12),
        Key("intermediate_size", "hidden", 3072),
        Key("max_position_embeddings", "length", 512),
        Key("type_vocab_size", "types", 2),
        Key("hidden_act", "ffn", "gelu", lambda v: f"plain({activation_name(v)})", inside),
        Key("hidden_dropout_prob", "dropout", 0.1),
        Key("attention_probs_dropout_prob", "attn_dropout", 0.1),
        Key("layer_norm_eps", "norm_eps", 1e-12),
        Key("initializer_range", "init_std", 0.02),
        Key("tie_word_embeddings", "tie", True),
        Key("_transform", "transform", "gelu"),
        *SPECIAL,
    ),
    constants=dict(pad_trains=False),
    before=lambda raw, cls: (
        raw | {"_transform": activation_name(raw.get("hidden_act", "gelu")), "pad_token_id": raw.get("pad_token_id", 0)}
    ),
    after=lambda raw, cfg: {k: v for k, v in raw.items() if k != "_transform"},
    neutral=(
        "classifier_dropout",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "output_past",
    ),  # fmt: skip
    classes={
        "BertForMaskedLM": dict(output="lm"),
        "BertModel": dict(output="hidden"),
        "BertForPreTraining": dict(output="pretraining"),
        "BertForNextSentencePrediction": dict(output="next"),
        "BertForSequenceClassification": dict(output="sequence"),
        "BertForTokenClassification": dict(output="tokens"),
        "BertForQuestionAnswering": dict(output="span"),
        "BertForMultipleChoice": dict(output="choice"),
    },
    table=LAYERS,
    heads=HEADS,
    prefix="bert.",
    bare=("BertModel",),
    aliases=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    spare={
        "BertForMaskedLM": (r"^cls\.seq_relationship\.", r"^bert\.pooler\."),
        "BertForTokenClassification": (r"^bert\.pooler\.",),
        "BertForQuestionAnswering": (r"^bert\.pooler\.",),
    },
    buffers=(r"cls\.predictions\.decoder\.bias$", r"embeddings\.position_ids$", r"embeddings\.token_type_ids$"),
    presets={
        "bert-nano": dict(vocab=2048, length=128, dim=128, layers=2, heads=2, hidden=512, dropout=0.0, attn_dropout=0.0),
        "bert-mini": dict(vocab=8192, length=256, dim=256, layers=4, heads=4, hidden=1024),
        "bert-base": {},
        "bert-base-cased": dict(vocab=28996),
        "bert-large": dict(dim=1024, layers=24, heads=16, hidden=4096),
    },
)
FAMILIES = (BERT,)
