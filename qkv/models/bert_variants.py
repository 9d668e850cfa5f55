"""What came of BERT: RoBERTa (Liu et al., 2019), DistilBERT (Sanh et al., 2019), ELECTRA (Clark et al., 2020) and ALBERT (Lan et al.,
2020). SpanBERT's files are BERT's."""

from ..checkpoints.config import Key
from .bert import BERT, HEADS, LAYERS, both
from .encoder import Encoder
from .family import SPECIAL, Family, activation_name, inside

LM, SEQUENCE, TOKENS, SPAN, CHOICE = (dict(output=o) for o in ("lm", "sequence", "tokens", "span", "choice"))
POOLER = (r"^\w+\.pooler\.",)  # that files of classes without one may hold


def _keys(length=None, **defaults):
    """BERT's keys with other defaults, by their name."""
    return tuple(
        Key(k.theirs, k.ours, defaults.get(k.theirs, k.default), k.load, k.save)
        for k in BERT.keys
        if k.theirs not in ("_transform", *(() if length is None else ("max_position_embeddings",)))
    )


def _classes(name, **more):
    heads = {"MaskedLM": LM, "SequenceClassification": SEQUENCE, "TokenClassification": TOKENS, "QuestionAnswering": SPAN,
             "MultipleChoice": CHOICE}  # fmt: skip
    out = {f"{name}For{k}": v for k, v in heads.items()}
    first = out.pop(f"{name}ForMaskedLM")
    return {f"{name}ForMaskedLM": first, f"{name}Model": dict(output="hidden")} | out | more


def _counted(raw, cls):
    """RoBERTa counts positions from pad + 1 on, in a table of max_position_embeddings rows."""
    pad = raw["pad_token_id"] = raw.get("pad_token_id", 1)
    raw["bos_token_id"], raw["eos_token_id"] = raw.get("bos_token_id", 0), raw.get("eos_token_id", 2)
    raw["_length"] = raw.pop("max_position_embeddings", 512) - pad - 1
    return raw | {"_position": f"learned(offset={pad + 1}, still={pad})"}


def _whole(raw, cfg):
    raw.pop("_position")
    if cfg.pad is None:
        raise ValueError("positions are counted from the padding id on; the model needs pad")
    return raw | {"max_position_embeddings": raw.pop("_length") + cfg.pad + 1}


ROBERTA = Family(
    name="roberta",
    config=Encoder,
    keys=(*_keys(length=0, vocab_size=50265), Key("_length", "length", 510), Key("_position", "position", "learned(offset=2, still=1)")),
    constants=dict(pad_trains=False, numbering="tokens", transform="gelu", classifier="tanh"),
    before=_counted,
    after=_whole,
    neutral=("classifier_dropout", "output_past", "create_token_type_ids_from_sequences", "max_position_embeddings"),
    classes=_classes("Roberta"),
    table=LAYERS,
    heads=HEADS
    | {
        "lm": (
            ("lm_head.bias", "head.out.bias"),
            *both("lm_head.dense", "head.dense"),
            *both("lm_head.layer_norm", "head.norm"),
            ("lm_head.decoder.weight", "head.out.weight"),
        ),
        "sequence": (*both("classifier.dense", "head.dense"), *both("classifier.out_proj", "head.out")),
        "choice": (*both("{p}pooler.dense", "head.dense"), *both("classifier", "head.out")),
    },
    prefix="roberta.",
    bare=("RobertaModel",),
    aliases=BERT.aliases,
    spare={f"RobertaFor{k}": POOLER for k in ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")},
    buffers=(r"^lm_head\.decoder\.bias$", r"embeddings\.position_ids$", r"embeddings\.token_type_ids$"),
    presets={
        "roberta-nano": dict(
            vocab=2048, length=126, dim=128, layers=2, heads=2, hidden=512, types=1, norm_eps=1e-5, dropout=0.0, attn_dropout=0.0
        ),
        "roberta-mini": dict(vocab=8192, length=254, dim=256, layers=4, heads=4, hidden=1024, types=1, norm_eps=1e-5),
        "roberta-base": dict(length=512, types=1, norm_eps=1e-5),
        "roberta-large": dict(length=512, types=1, norm_eps=1e-5, dim=1024, layers=24, heads=16, hidden=4096),
    },  # fmt: skip
)

D = "{p}transformer.layer.{i}."
DISTILBERT = Family(
    name="distilbert",
    config=Encoder,
    keys=(
        Key("vocab_size", "vocab", 30522),
        Key("dim", "dim", 768),
        Key("n_layers", "layers", 6),
        Key("n_heads", "heads", 12),
        Key("hidden_dim", "hidden", 3072),
        Key("max_position_embeddings", "length", 512),
        Key("activation", "ffn", "gelu", lambda v: f"plain({activation_name(v)})", inside),
        Key("_transform", "transform", "gelu"),
        Key("dropout", "dropout", 0.1),
        Key("attention_dropout", "attn_dropout", 0.1),
        Key("initializer_range", "init_std", 0.02),
        Key("tie_word_embeddings", "tie", True),
        *SPECIAL,
    ),
    constants=dict(pad_trains=False, norm_eps=1e-12, types=0, pooler=False, classifier="relu"),
    before=lambda raw, cls: (
        raw | {"_transform": activation_name(raw.get("activation", "gelu")), "pad_token_id": raw.get("pad_token_id", 0)}
    ),
    after=lambda raw, cfg: {k: v for k, v in raw.items() if k != "_transform"},
    neutral=("qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds", "tie_weights_"),  # sinusoids only begin the trained table
    classes=_classes("DistilBert"),
    table=(
        ("{p}embeddings.word_embeddings.weight", "embed.token.weight"),
        ("{p}embeddings.position_embeddings.weight", "embed.position.weight"),
        *both("{p}embeddings.LayerNorm", "embed.norm"),
        *(r for x, y in zip(("q_lin", "k_lin", "v_lin", "out_lin"), "qkvo") for r in both(f"{D}attention.{x}", f"blocks.{{i}}.attn.f.{y}")),
        *both(D + "sa_layer_norm", "blocks.{i}.attn.post"),
        *both(D + "ffn.lin1", "blocks.{i}.ffn.f.up"),
        *both(D + "ffn.lin2", "blocks.{i}.ffn.f.down"),
        *both(D + "output_layer_norm", "blocks.{i}.ffn.post"),
    ),
    heads={
        "lm": (
            *both("vocab_transform", "head.dense"),
            *both("vocab_layer_norm", "head.norm"),
            ("vocab_projector.bias", "head.out.bias"),
            ("vocab_projector.weight", "head.out.weight"),
        ),
        "sequence": (*both("pre_classifier", "head.dense"), *both("classifier", "head.out")),
        "choice": (*both("pre_classifier", "head.dense"), *both("classifier", "head.out")),
        "tokens": HEADS["tokens"],
        "span": HEADS["span"],
    },
    prefix="distilbert.",
    bare=("DistilBertModel",),
    buffers=(r"embeddings\.position_ids$",),
    presets={
        "distilbert-nano": dict(vocab=2048, length=128, dim=128, layers=1, heads=2, hidden=512, dropout=0.0, attn_dropout=0.0),
        "distilbert-base": {},
    },
)


def _electra(raw, cls):
    raw["pad_token_id"] = raw.get("pad_token_id", 0)
    raw["_transform"] = activation_name(raw.get("hidden_act", "gelu")) if cls == "ElectraForPreTraining" else "gelu"
    dim, width = raw.get("hidden_size", 256), raw.pop("embedding_size", 128)
    return raw | {"_embed_dim": None if width == dim else width}


def _electra_back(raw, cfg):
    raw.pop("_transform")
    return raw | {"embedding_size": raw.pop("_embed_dim") or cfg.dim}


ELECTRA = Family(
    name="electra",
    config=Encoder,
    keys=(
        *_keys(hidden_size=256, num_attention_heads=4, intermediate_size=1024),
        Key("_embed_dim", "embed_dim", 128),
        Key("_transform", "transform", "gelu"),
    ),
    constants=dict(pad_trains=False, pooler=False, classifier="gelu"),
    before=_electra,
    after=_electra_back,
    fixed={"summary_type": ("first",), "summary_use_proj": (True,), "summary_activation": ("gelu",)},
    neutral=("summary_last_dropout", "classifier_dropout"),
    classes={"ElectraForPreTraining": dict(output="detect")} | _classes("Electra"),
    table=(
        *LAYERS,
        *both("{p}embeddings_project", "embed.project"),
    ),
    heads={
        "detect": (*both("discriminator_predictions.dense", "head.dense"), *both("discriminator_predictions.dense_prediction", "head.out")),
        "lm": (
            *both("generator_predictions.dense", "head.dense"),
            *both("generator_predictions.LayerNorm", "head.norm"),
            ("generator_lm_head.bias", "head.out.bias"),
            ("generator_lm_head.weight", "head.out.weight"),
        ),
        "sequence": (*both("classifier.dense", "head.dense"), *both("classifier.out_proj", "head.out")),
        "choice": (*both("sequence_summary.summary", "head.dense"), *both("classifier", "head.out")),
        "tokens": HEADS["tokens"],
        "span": HEADS["span"],
    },
    prefix="electra.",
    bare=("ElectraModel",),
    buffers=(r"embeddings\.position_ids$", r"embeddings\.token_type_ids$"),
    presets={
        "electra-nano": dict(vocab=2048, length=128, dim=128, embed_dim=None, layers=2, heads=2, hidden=512, dropout=0.0, attn_dropout=0.0),
        "electra-mini": dict(vocab=8192, length=256, dim=256, embed_dim=128, layers=4, heads=4, hidden=1024),
        "electra-small": {},
        "electra-base": dict(dim=768, embed_dim=None, heads=12, hidden=3072),
        "electra-large": dict(dim=1024, embed_dim=None, layers=24, heads=16, hidden=4096),
    },
)


def _albert_table(cfg):
    rows = [r for r in LAYERS if "encoder.layer" not in r[0] and "pooler" not in r[0]]
    rows += both("{p}encoder.embedding_hidden_mapping_in", "embed.project") + both("{p}pooler", "pool")
    for g in range(cfg.groups):
        for j in range(cfg.inner):
            theirs, ours = f"{{p}}encoder.albert_layer_groups.{g}.albert_layers.{j}.", f"blocks.{g * cfg.inner + j}."
            names = {"attention.query": "attn.f.q", "attention.key": "attn.f.k", "attention.value": "attn.f.v",
                     "attention.dense": "attn.f.o", "attention.LayerNorm": "attn.post", "ffn": "ffn.f.up", "ffn_output": "ffn.f.down",
                     "full_layer_layer_norm": "ffn.post"}  # fmt: skip
            rows += [r for a, b in names.items() for r in both(theirs + a, ours + b)]
    return rows


def _albert_language(h):
    return (
        ("predictions.bias", h + "out.bias"),
        *both("predictions.dense", h + "dense"),
        *both("predictions.LayerNorm", h + "norm"),
        ("predictions.decoder.weight", h + "out.weight"),
    )


ALBERT = Family(
    name="albert",
    config=Encoder,
    keys=(
        *_keys(
            vocab_size=30000,
            hidden_size=4096,
            num_attention_heads=64,
            intermediate_size=16384,
            hidden_act="gelu_new",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        Key("embedding_size", "embed_dim", 128),
        Key("num_hidden_groups", "groups", 1),
        Key("inner_group_num", "inner", 1),
        Key("_transform", "transform", "gelu_new"),
    ),  # fmt: skip
    constants=dict(pad_trains=False),
    before=lambda raw, cls: (
        {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3} | raw | {"_transform": activation_name(raw.get("hidden_act", "gelu_new"))}
    ),
    after=lambda raw, cfg: {k: v for k, v in raw.items() if k != "_transform"},
    neutral=("classifier_dropout_prob", "net_structure_type", "gap_size", "num_memory_blocks", "down_scale_factor"),
    classes={"AlbertForPreTraining": dict(output="pretraining-order")} | _classes("Albert"),
    table=_albert_table,
    heads={
        "lm": _albert_language("head."),
        "pretraining-order": (*_albert_language("head.language."), *both("sop_classifier.classifier", "head.next")),
        **{k: HEADS[k] for k in ("sequence", "tokens", "choice", "span")},
    },
    prefix="albert.",
    bare=("AlbertModel",),
    spare={f"AlbertFor{k}": (r"^albert\.pooler\.",) for k in ("MaskedLM", "TokenClassification", "QuestionAnswering")}
    | {"AlbertForMaskedLM": (r"^albert\.pooler\.", r"^sop_classifier\.")},
    buffers=(r"^predictions\.decoder\.bias$", r"embeddings\.position_ids$", r"embeddings\.token_type_ids$"),
    presets={
        "albert-nano": dict(vocab=2048, length=128, dim=128, embed_dim=64, layers=2, heads=2, hidden=512),
        "albert-mini": dict(vocab=8192, length=256, dim=256, embed_dim=128, layers=4, heads=4, hidden=1024),
        "albert-base": dict(dim=768, heads=12, hidden=3072),
        "albert-large": dict(dim=1024, layers=24, heads=16, hidden=4096),
        "albert-xlarge": dict(dim=2048, layers=24, heads=16, hidden=8192),
        "albert-xxlarge": {},
    },
)
FAMILIES = (ROBERTA, DISTILBERT, ELECTRA, ALBERT)
