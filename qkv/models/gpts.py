"""The other GPTs: GPT-1 (Radford et al., 2018), GPT-3 (Brown et al., 2020), GPT-Neo (Black et al., 2021), BioGPT (Luo et al., 2022);
and decoders whose papers give a shape and no weights: PaLM (Chowdhery et al., 2022), LaMDA (Thoppilan et al., 2022), BloombergGPT
(Wu et al., 2023)."""

from typing import Any

from ..checkpoints.config import Key
from ..core.slots import parse
from . import gpt2
from .bert import both
from .decoder import Decoder
from .family import SPECIAL, Family, activation_name, inside

SCORE = (("score.weight", "head.out.weight"),)
_POST = {"attn.pre": "attn.post", "ffn.pre": "ffn.post", "{p}wte": "{p}tokens_embed", "{p}wpe": "{p}positions_embed"}


def _renamed(row):
    """A row of GPT-2's table as GPT-1 spells it: norms come after."""
    theirs, ours, *op = row
    for old, new in _POST.items():
        theirs = theirs.replace(old, new)
        ours = ours.replace(old, new) if isinstance(ours, str) else ours
    return (theirs, ours, *op)


GPT1 = Family(
    name="openai-gpt",
    config=Decoder,
    keys=(
        Key("vocab_size", "vocab", 40478),
        Key("n_positions", "length", 512),
        Key("n_embd", "dim", 768),
        Key("n_layer", "layers", 12),
        Key("n_head", "heads", 12),
        Key(
            "afn",
            "ffn",
            "gelu",
            lambda v: f"plain({'gelu_new' if v == 'gelu' else activation_name(v)})",
            lambda v: "gelu" if inside(v) == "gelu_new" else inside(v),
        ),  # its "gelu" is the approximation by tanh
        Key("resid_pdrop", "dropout", 0.1),
        Key("attn_pdrop", "attn_dropout", 0.1),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
        Key("initializer_range", "init_std", 0.02),
        Key("tie_word_embeddings", "tie", True),
        *SPECIAL,
    ),  # fmt: skip
    neutral=(
        "embd_pdrop",
        "n_ctx",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    ),  # fmt: skip
    after=lambda raw, cfg: raw | {"embd_pdrop": cfg.dropout},
    constants=dict(order="post", final_norm=False, init="normal"),
    classes={
        "OpenAIGPTLMHeadModel": dict(output="lm"),
        "OpenAIGPTModel": dict(output="hidden"),
        "OpenAIGPTDoubleHeadsModel": dict(output="double", labels=1),
        "OpenAIGPTForSequenceClassification": dict(output="sequence"),
    },
    table=tuple(_renamed(r) for r in gpt2.TABLE if "ln_f" not in r[0]),
    heads={"lm": gpt2.HEADS["lm"], "sequence": SCORE, "double": gpt2.HEADS["double"]},
    prefix="transformer.",
    bare=("OpenAIGPTModel",),
    buffers=(r"attn\.bias$", r"position_ids$"),
    presets={
        "gpt1-nano": dict(vocab=2048, length=128, dim=128, layers=2, heads=2, dropout=0.0, attn_dropout=0.0),
        "gpt1": {},
    },
)


def _banded(raw, cls):
    raw = gpt2._published(raw, cls)
    kinds, window = raw.pop("attention_pattern", ["dense"]), raw.pop("window", 256)
    if not isinstance(kinds, list) or not kinds or set(kinds) - {"dense", "banded"}:
        raise ValueError(f"attention_pattern={kinds!r} must list dense and banded")
    raw["_pattern"] = ["causal" if k == "dense" else f"sliding({window})" for k in kinds]
    raw["_pattern"] = raw["_pattern"][0] if len(raw["_pattern"]) == 1 else tuple(raw["_pattern"])
    return raw


def _listed(raw, cfg):
    patterns = raw.pop("_pattern")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    windows = {int(inside(p)) for p in patterns if p != "causal"}
    if len(windows) > 1:
        raise ValueError("one window for all banded layers")
    raw["attention_pattern"] = ["dense" if p == "causal" else "banded" for p in patterns]
    return raw | {"embd_pdrop": cfg.dropout, **({"window": windows.pop()} if windows else {})}


SPARSE: dict[str, Any] = dict(length=2048, pattern=("causal", "sliding(256)"))  # the paper gives no width of the band
GPT3 = Family(
    name="gpt3",
    config=Decoder,
    keys=(*gpt2.GPT2.keys, Key("_pattern", "pattern", "causal")),
    neutral=gpt2.GPT2.neutral,
    fixed=gpt2.GPT2.fixed,
    before=_banded,
    after=_listed,
    classes={"GPT3LMHeadModel": dict(output="lm"), "GPT3Model": dict(output="hidden")},
    table=gpt2.TABLE,
    heads=gpt2.HEADS,
    prefix="transformer.",
    bare=("GPT3Model",),
    presets={
        "gpt3-nano": dict(
            vocab=2048,
            bos=5,
            eos=6,
            length=128,
            dim=128,
            layers=4,
            heads=2,
            dropout=0.0,
            attn_dropout=0.0,
            pattern=("causal", "sliding(32)"),
        ),
        "gpt3-small": SPARSE,
        "gpt3-medium": SPARSE | dict(dim=1024, layers=24, heads=16),
        "gpt3-large": SPARSE | dict(dim=1536, layers=24, heads=16),
        "gpt3-xl": SPARSE | dict(dim=2048, layers=24, heads=16),
        "gpt3-2.7b": SPARSE | dict(dim=2560, layers=32, heads=32),
        "gpt3-6.7b": SPARSE | dict(dim=4096, layers=32, heads=32),
        "gpt3-13b": SPARSE | dict(dim=5120, layers=40, heads=40),
        "gpt3-175b": SPARSE | dict(dim=12288, layers=96, heads=96),
    },
)


def _local(raw, cls):
    raw.setdefault("bos_token_id", 50256)
    raw.setdefault("eos_token_id", 50256)
    layers, window = raw.get("num_layers", 24), raw.pop("window_size", 256)
    types = raw.pop("attention_types", None) or [[["global", "local"], layers // 2]]
    kinds = [k for names, times in types for _ in range(times) for k in names]
    if raw.pop("attention_layers", kinds) != kinds or len(kinds) != layers or set(kinds) - {"global", "local"}:
        raise ValueError(f"attention_types={types!r} must say global or local of each of the {layers} layers")
    raw["_pattern"] = tuple("causal" if k == "global" else f"sliding({window})" for k in kinds)
    return raw


def _types(raw, cfg):
    raw.pop("_pattern")
    patterns = [cfg.layer("pattern", i) for i in range(cfg.layers)]
    windows = {int(inside(p)) for p in patterns if p != "causal"}
    if len(windows) > 1:
        raise ValueError("one window for all local layers")
    kinds = ["global" if p == "causal" else "local" for p in patterns]
    return raw | {"attention_types": [[[k], 1] for k in kinds], "window_size": (windows or {256}).pop(), "embed_dropout": cfg.dropout}


GPTNEO = Family(
    name="gpt_neo",
    config=Decoder,
    keys=(
        Key("vocab_size", "vocab", 50257),
        Key("max_position_embeddings", "length", 2048),
        Key("hidden_size", "dim", 2048),
        Key("num_layers", "layers", 24),
        Key("num_heads", "heads", 16),
        Key("intermediate_size", "hidden", None),
        Key("activation_function", "ffn", "gelu_new", lambda v: f"plain({activation_name(v)})", inside),
        Key("resid_dropout", "dropout", 0.0),
        Key("attention_dropout", "attn_dropout", 0.0),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
        Key("initializer_range", "init_std", 0.02),
        Key("tie_word_embeddings", "tie", True),
        Key("_pattern", "pattern", None),
        *SPECIAL,
    ),
    before=_local,
    after=_types,
    neutral=(
        "embed_dropout",
        "classifier_dropout",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    ),  # fmt: skip
    constants=dict(kernel="softmax(scale=1.0, upcast=True)", biases="o", init="normal"),
    classes={
        "GPTNeoForCausalLM": dict(output="lm"),
        "GPTNeoModel": dict(output="hidden"),
        "GPTNeoForSequenceClassification": dict(output="sequence"),
        "GPTNeoForTokenClassification": dict(output="tokens"),
        "GPTNeoForQuestionAnswering": dict(output="span"),
    },
    table=(
        *(r for r in gpt2.TABLE if ".attn." not in r[0] and ".mlp." not in r[0]),
        *((f"{{p}}h.{{i}}.attn.attention.{x}_proj.weight", f"blocks.{{i}}.attn.f.{x}.weight") for x in "qkv"),
        *both("{p}h.{i}.attn.attention.out_proj", "blocks.{i}.attn.f.o"),
        *both("{p}h.{i}.mlp.c_fc", "blocks.{i}.ffn.f.up"),
        *both("{p}h.{i}.mlp.c_proj", "blocks.{i}.ffn.f.down"),
    ),
    heads=gpt2.HEADS,
    prefix="transformer.",
    bare=("GPTNeoModel",),
    buffers=(r"attention\.bias$", r"attention\.masked_bias$"),
    presets={
        "gptneo-nano": dict(vocab=2048, bos=5, eos=6, length=128, dim=128, layers=2, heads=2, pattern=("causal", "sliding(32)")),
        "gpt-neo-125m": dict(dim=768, layers=12, heads=12, pattern=("causal", "sliding(256)") * 6),
        "gpt-neo-1.3b": dict(pattern=("causal", "sliding(256)") * 12),
        "gpt-neo-2.7b": dict(dim=2560, layers=32, heads=20, pattern=("causal", "sliding(256)") * 16),
    },
)


def _bio_written(raw, cfg):
    ffn = raw.pop("_ffn")
    return raw | {"hidden_act": inside(ffn), "activation_dropout": parse(ffn)[2].get("dropout", 0.0)}


BIOGPT = Family(
    name="biogpt",
    config=Decoder,
    keys=(
        Key("vocab_size", "vocab", 42384),
        Key("hidden_size", "dim", 1024),
        Key("num_hidden_layers", "layers", 24),
        Key("num_attention_heads", "heads", 16),
        Key("intermediate_size", "hidden", 4096),
        Key("_ffn", "ffn", "plain(gelu)"),
        Key("hidden_dropout_prob", "dropout", 0.1),
        Key("attention_probs_dropout_prob", "attn_dropout", 0.1),
        Key("max_position_embeddings", "length", 1024),
        Key("initializer_range", "init_std", 0.02),
        Key("scale_embedding", "scaled", True),
        Key("tie_word_embeddings", "tie", True),
        *SPECIAL,
    ),
    before=lambda raw, cls: (
        {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        | {k: v for k, v in raw.items() if k not in ("hidden_act", "activation_dropout")}
        | {
            "_ffn": f"plain({activation_name(raw.get('hidden_act', 'gelu'))}"
            + (f", dropout={raw['activation_dropout']})" if raw.get("activation_dropout") else ")")
        }
    ),
    after=_bio_written,
    neutral=("classifier_dropout", "layer_norm_eps"),  # the reference builds its norms without it
    constants=dict(norm_eps=1e-5, position="learned(offset=2)", numbering="mask", pad_trains=False, init="normal"),
    classes={
        "BioGptForCausalLM": dict(output="lm"),
        "BioGptModel": dict(output="hidden"),
        "BioGptForTokenClassification": dict(output="tokens"),
        "BioGptForSequenceClassification": dict(output="sequence"),
    },
    table=(
        ("{p}embed_tokens.weight", "embed.token.weight"),
        ("{p}embed_positions.weight", "embed.position.weight"),
        *(
            r
            for x, y in zip(("q_proj", "k_proj", "v_proj", "out_proj"), "qkvo")
            for r in both(f"{{p}}layers.{{i}}.self_attn.{x}", f"blocks.{{i}}.attn.f.{y}")
        ),
        *both("{p}layers.{i}.self_attn_layer_norm", "blocks.{i}.attn.pre"),
        *both("{p}layers.{i}.fc1", "blocks.{i}.ffn.f.up"),
        *both("{p}layers.{i}.fc2", "blocks.{i}.ffn.f.down"),
        *both("{p}layers.{i}.final_layer_norm", "blocks.{i}.ffn.pre"),
        *both("{p}layer_norm", "norm"),
    ),
    heads={"lm": (("output_projection.weight", "head.out.weight"),), "tokens": gpt2.HEADS["tokens"], "sequence": SCORE},
    prefix="biogpt.",
    bare=("BioGptModel",),
    presets={
        "biogpt-nano": dict(vocab=2048, length=128, dim=128, layers=2, heads=2, hidden=512, dropout=0.0, attn_dropout=0.0),
        "biogpt": {},
        "biogpt-large": dict(dim=1600, layers=48, heads=25, hidden=6400, length=2048, vocab=57717),
    },
)

PALM: dict[str, Any] = dict(order="parallel", kv_heads=1, ffn="gated(silu, bias=False)", biases="", norm="layer(bias=False)", position="rope",
                            length=2048, vocab=256000)  # fmt: skip
LAMDA: dict[str, Any] = dict(position="t5", kernel="softmax(scale=1.0)", ffn="gated(gelu, bias=False)", norm="rms", biases="", vocab=32000,
                             length=8192)  # fmt: skip
OWN = {
    "palm-nano": Decoder(**PALM | dict(vocab=2048, length=128), dim=128, layers=4, heads=4, hidden=512),
    "palm-8b": Decoder(**PALM, dim=4096, layers=32, heads=16, head_dim=256, hidden=16384),
    "palm-62b": Decoder(**PALM, dim=8192, layers=64, heads=32, head_dim=256, hidden=32768),
    "palm-540b": Decoder(**PALM, dim=18432, layers=118, heads=48, head_dim=256, hidden=73728),
    "lamda-137b": Decoder(**LAMDA, dim=8192, layers=64, heads=128, head_dim=128, hidden=65536),
    "bloomberggpt-50b": Decoder(
        vocab=131072, dim=7680, layers=70, heads=40, length=2048, position="alibi", embed_norm=True, ffn="plain(gelu_new)"
    ),
}
FAMILIES = (GPT1, GPT3, GPTNEO, BIOGPT)
