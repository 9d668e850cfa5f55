"""LLaMA 1, 2, 3 (Touvron et al., 2023; Dubey et al., 2024) and Mistral 7B (Jiang et al., 2023)."""

from typing import Any

from ..checkpoints.config import Key
from ..core.slots import parse
from .decoder import Decoder
from .family import SPECIAL, Family, activation_name, inside

A, F = "blocks.{i}.attn.f.", "blocks.{i}.ffn.f."
TABLE = (
    ("{p}embed_tokens.weight", "embed.token.weight"),
    ("{p}layers.{i}.input_layernorm.weight", "blocks.{i}.attn.pre.weight"),
    *((f"{{p}}layers.{{i}}.self_attn.{x}_proj.{leaf}", f"{A}{x}.{leaf}") for x in "qkvo" for leaf in ("weight", "bias")),
    ("{p}layers.{i}.post_attention_layernorm.weight", "blocks.{i}.ffn.pre.weight"),
    *((f"{{p}}layers.{{i}}.mlp.{x}_proj.{leaf}", f"{F}{x}.{leaf}") for x in ("gate", "up", "down") for leaf in ("weight", "bias")),
    ("{p}norm.weight", "norm.weight"),
)
HEADS = {
    "lm": (("lm_head.weight", "head.out.weight"),),
    "sequence": (("score.weight", "head.out.weight"),),
    "tokens": (("score.weight", "head.out.weight"), ("score.bias", "head.out.bias")),
    "span": (("qa_outputs.weight", "head.out.weight"), ("qa_outputs.bias", "head.out.bias")),
}


CONTEXT = {"factor": "factor", "original": "original_max_position_embeddings"}
SCALINGS = {  # rope_type: {our argument: its key}
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": CONTEXT | {"low": "low_freq_factor", "high": "high_freq_factor"},
    "yarn": CONTEXT | {"low": "beta_slow", "high": "beta_fast"},
}


def _rope(raw, theta):
    """rope_theta and rope_scaling, or the newer rope_parameters, as the text of the position slot."""
    given = dict(raw.pop("rope_parameters", None) or {})
    given |= raw.pop("rope_scaling", None) or {}
    base = raw.pop("rope_theta", None)
    base = given.pop("rope_theta", base if base is not None else theta)
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    if kind not in SCALINGS:
        raise ValueError(f"config.json: rope_type={kind!r} is not supported; {', '.join(SCALINGS)} are")
    names = {theirs: ours for ours, theirs in SCALINGS[kind].items()}
    if set(given) - set(names):
        raise ValueError(f"config.json: rope scaling {kind} takes no {', '.join(sorted(set(given) - set(names)))}")
    if kind == "yarn":
        given.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings", 2048))
    written = [f"base={base}"] + ([f"scaling={kind}"] if kind != "default" else []) + [f"{names[k]}={v}" for k, v in given.items()]
    return f"rope({', '.join(written)})"


def _before(theta):
    def before(raw, cls):
        raw["_position"] = _rope(raw, theta)
        bias, gate = raw.pop("attention_bias", False), raw.pop("mlp_bias", False)
        raw["_biases"] = "qkvo" if bias else ""
        raw["_ffn"] = f"gated({activation_name(raw.pop('hidden_act', 'silu'))}, bias={bool(gate)})"
        raw.setdefault("bos_token_id", 1)
        raw.setdefault("eos_token_id", 2)
        return raw

    return before


def _after(raw, cfg):
    _, _, rope = parse(raw.pop("_position"))
    kind = rope.get("scaling") or "default"
    if kind not in SCALINGS:
        raise ValueError(f"position={cfg.position!r}: the published layout has no scaling={kind}")
    scaling = {"rope_type": kind} if kind != "default" else {}
    scaling |= {SCALINGS[kind][k]: v for k, v in rope.items() if k in SCALINGS[kind]}
    raw["rope_theta"] = rope.get("base", 10000.0)
    if scaling:
        raw["rope_scaling"] = scaling
    biases, ffn = raw.pop("_biases"), raw.pop("_ffn")
    raw["hidden_act"] = inside(ffn)
    if biases:
        raw["attention_bias"] = True
    if "bias=True" in ffn:
        raw["mlp_bias"] = True
    return raw


def _keys(length, eps=1e-6, kv=None, hidden=11008):
    return (
        Key("vocab_size", "vocab", 32000),
        Key("hidden_size", "dim", 4096),
        Key("intermediate_size", "hidden", hidden),
        Key("num_hidden_layers", "layers", 32),
        Key("num_attention_heads", "heads", 32),
        Key("num_key_value_heads", "kv_heads", kv),
        Key("head_dim", "head_dim", None),
        Key("max_position_embeddings", "length", length),
        Key("rms_norm_eps", "norm_eps", eps),
        Key("initializer_range", "init_std", 0.02),
        Key("tie_word_embeddings", "tie", False),
        Key("attention_dropout", "attn_dropout", 0.0),
        Key("_position", "position", "rope"),
        Key("_biases", "biases", ""),
        Key("_ffn", "ffn", "gated(silu, bias=False)"),
        *SPECIAL,
    )


def _classes(name):
    return {
        f"{name}ForCausalLM": dict(output="lm"),
        f"{name}Model": dict(output="hidden"),
        f"{name}ForSequenceClassification": dict(output="sequence"),
        f"{name}ForTokenClassification": dict(output="tokens"),
        f"{name}ForQuestionAnswering": dict(output="span"),
    }


COMMON: dict[str, Any] = dict(
    config=Decoder,
    table=TABLE,
    heads=HEADS,
    constants=dict(norm="rms", init="normal", pad_trains=False),
    neutral=("rope_interleaved", "pretraining_tp", "layer_types", "classifier_dropout"),
    buffers=(r"rotary_emb\.inv_freq$",),
    prefix="model.",
    after=_after,
)
LLAMA = Family(
    name="llama",
    keys=_keys(2048),
    before=_before(10000.0),
    classes=_classes("Llama"),
    bare=("LlamaModel",),
    prefixes={"LlamaForQuestionAnswering": "transformer."},
    **COMMON,
    presets={
        "llama-nano": dict(vocab=256, length=128, dim=128, layers=4, heads=4, hidden=344),
        "llama-mini": dict(vocab=4096, length=256, dim=256, layers=6, heads=8, kv_heads=4, hidden=688),
        "llama-7b": {},
        "llama-13b": dict(dim=5120, hidden=13824, layers=40, heads=40),
        "llama-33b": dict(dim=6656, hidden=17920, layers=60, heads=52),
        "llama-65b": dict(dim=8192, hidden=22016, layers=80, heads=64),
        "llama-2-7b": dict(length=4096, norm_eps=1e-5),
        "llama-2-13b": dict(length=4096, norm_eps=1e-5, dim=5120, hidden=13824, layers=40, heads=40),
        "llama-2-70b": dict(length=4096, norm_eps=1e-5, dim=8192, hidden=28672, layers=80, heads=64, kv_heads=8),
        "llama-3-8b": dict(
            vocab=128256, length=8192, norm_eps=1e-5, hidden=14336, kv_heads=8, position="rope(base=500000.0)", bos=128000, eos=128001
        ),
        "llama-3-70b": dict(
            vocab=128256,
            length=8192,
            norm_eps=1e-5,
            dim=8192,
            hidden=28672,
            layers=80,
            heads=64,
            kv_heads=8,
            position="rope(base=500000.0)",
            bos=128000,
            eos=128001,
        ),  # fmt: skip
        "llama-3.1-8b": dict(
            vocab=128256,
            length=131072,
            norm_eps=1e-5,
            hidden=14336,
            kv_heads=8,
            bos=128000,
            eos=128001,
            position="rope(base=500000.0, scaling=llama3, factor=8.0, low=1.0, high=4.0, original=8192)",
        ),  # fmt: skip
        "llama-3.2-1b": dict(
            vocab=128256,
            length=131072,
            norm_eps=1e-5,
            dim=2048,
            hidden=8192,
            layers=16,
            kv_heads=8,
            head_dim=64,
            tie=True,
            bos=128000,
            eos=128001,
            position="rope(base=500000.0, scaling=llama3, factor=32.0, low=1.0, high=4.0, original=8192)",
        ),  # fmt: skip
    },
)


def _window(raw, cls):
    raw = _before(10000.0)(raw, cls)
    window = raw.pop("sliding_window", 4096)
    raw["_pattern"] = "causal" if window is None else f"sliding({window})"
    return raw


def _no_window(raw, cfg):
    pattern = raw.pop("_pattern")
    return _after(raw, cfg) | {"sliding_window": None if pattern == "causal" else int(inside(pattern))}


MISTRAL = Family(
    name="mistral",
    keys=(*_keys(4096 * 32, kv=8, hidden=14336), Key("_pattern", "pattern", "sliding(4096)")),
    before=_window,
    classes=_classes("Mistral"),
    bare=("MistralModel",),
    **(COMMON | {"after": _no_window}),
    presets={
        "mistral-nano": dict(vocab=256, length=256, dim=128, layers=4, heads=4, kv_heads=2, hidden=344, pattern="sliding(64)"),
        "mistral-7b": dict(length=32768, norm_eps=1e-5),
    },
)
FAMILIES = (LLAMA, MISTRAL)
