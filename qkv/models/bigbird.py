"""BigBird (Zaheer et al., 2020): an encoder for long texts."""

from ..checkpoints.config import Key
from .bert import BERT, HEADS, LAYERS, both
from .encoder import Encoder
from .family import Family, activation_name, arguments


def _before(raw, cls):
    act = activation_name(raw.get("hidden_act", "gelu_new"))
    raw = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | raw | {"_transform": act, "_classifier": act}
    block, random = raw.pop("block_size", 64), raw.pop("num_random_blocks", 3)
    sparse = raw.pop("attention_type", "block_sparse")
    if sparse not in ("block_sparse", "original_full"):
        raise ValueError(f"attention_type={sparse!r} is not block_sparse or original_full")
    raw["_kernel"] = f"bigbird(block={block}, random={random})" if sparse == "block_sparse" else "softmax"
    raw["_biases"] = "qkvo" if raw.pop("use_bias", True) else "o"
    return raw


def _after(raw, cfg):
    kernel = raw.pop("_kernel")
    exact = kernel == "softmax"
    raw |= {"use_bias": raw.pop("_biases") == "qkvo", "attention_type": "original_full" if exact else "block_sparse"}
    for key in ("_transform", "_classifier"):
        raw.pop(key)
    if exact:
        return raw
    block, random = arguments(kernel, "block", "random")
    return raw | {"block_size": block, "num_random_blocks": random}


_DEFAULTS = {"vocab_size": 50358, "max_position_embeddings": 4096, "hidden_act": "gelu_new"}
BIGBIRD = Family(
    name="big_bird",
    config=Encoder,
    keys=(
        *(Key(k.theirs, k.ours, _DEFAULTS.get(k.theirs, k.default), k.load, k.save) for k in BERT.keys),
        Key("rescale_embeddings", "scaled", False),
        Key("_kernel", "kernel", "bigbird"),
        Key("_biases", "biases", "qkvo"),
        Key("_classifier", "classifier", "gelu_new"),
    ),
    before=_before,
    after=_after,
    neutral=("classifier_dropout",),
    constants=dict(pad_trains=False),
    classes={
        "BigBirdForMaskedLM": dict(output="lm"),
        "BigBirdModel": dict(output="hidden"),
        "BigBirdForPreTraining": dict(output="pretraining"),
        "BigBirdForSequenceClassification": dict(output="sequence"),
        "BigBirdForTokenClassification": dict(output="tokens"),
    },
    table=(*(r for r in LAYERS if "pooler" not in r[0]), *both("{p}pooler", "pool")),
    heads=HEADS | {"sequence": (*both("classifier.dense", "head.dense"), *both("classifier.out_proj", "head.out"))},
    prefix="bert.",
    bare=("BigBirdModel",),
    spare={f"BigBirdFor{k}": (r"^bert\.pooler\.",) for k in ("MaskedLM", "SequenceClassification", "TokenClassification")},
    buffers=(r"cls\.predictions\.decoder\.bias$", r"embeddings\.position_ids$", r"embeddings\.token_type_ids$"),
    presets={
        "bigbird-nano": dict(vocab=2048, length=512, dim=128, layers=2, heads=2, hidden=512, dropout=0.0, attn_dropout=0.0,
                             kernel="bigbird(block=16, random=2)"),
        "bigbird-base": dict(kernel="bigbird(block=64, random=3)"),
    },
)  # fmt: skip
FAMILIES = (BIGBIRD,)
