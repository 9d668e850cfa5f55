"""Published layouts of efficient Transformers: LinformerLM (package linformer) and PerformerLM (package performer-pytorch)."""

from ..checkpoints.config import Key
from .bert import both
from .decoder import Decoder
from .encoder import Encoder
from .family import Family, arguments

_LAYER = {"to_q": "attn.f.q", "to_k": "attn.f.k", "to_v": "attn.f.v", "to_out": "attn.f.o"}


def _linformer(raw, cls):
    raw = {"k": 256, "heads": 8, "dim_head": None, "one_kv_head": False, "share_kv": False, "dropout": 0.0} | raw
    raw["_kernel"] = f"linformer(rank={raw.pop('k')}, shared={raw.pop('share_kv')})"
    raw["_kv"] = 1 if raw.pop("one_kv_head") else None
    return raw


def _linformer_back(raw, cfg):
    rank, shared = arguments(raw.pop("_kernel"), "rank", "shared")
    return raw | {"k": rank, "share_kv": shared, "one_kv_head": raw.pop("_kv") == 1}


_L = "linformer.net.layers.{i}."
LINFORMER = Family(
    name="linformer-lm",
    config=Encoder,
    keys=(
        Key("num_tokens", "vocab", 20000),
        Key("dim", "dim", 512),
        Key("seq_len", "length", 4096),
        Key("depth", "layers", 12),
        Key("heads", "heads", 8),
        Key("dim_head", "head_dim", None),
        Key("_kv", "kv_heads", None),
        Key("_kernel", "kernel", "linformer"),
        Key("dropout", "attn_dropout", 0.0),
    ),
    before=_linformer,
    after=_linformer_back,
    fixed={"reversible": (False,)},
    constants=dict(order="pre", final_norm=False, embed_norm=False, norm_eps=1e-5, biases="o", ffn="plain(gelu)", types=0, pooler=False, tie=False,
                   transform=None, lm_bias=True),
    classes={"LinformerLM": dict(output="lm")},
    table=(
        ("token_emb.weight", "embed.token.weight"),
        ("pos_emb.weight", "embed.position.weight"),
        *both(_L + "0.norm", "blocks.{i}.attn.pre"),
        *((f"{_L}0.fn.{a}.{leaf}", f"blocks.{{i}}.{b}.{leaf}") for a, b in _LAYER.items() for leaf in ("weight", "bias")),
        (_L + "0.fn.proj_k", "blocks.{i}.attn.f.kernel.keys"),
        (_L + "0.fn.proj_v", "blocks.{i}.attn.f.kernel.values"),
        *both(_L + "1.norm", "blocks.{i}.ffn.pre"),
        *both(_L + "1.fn.w1", "blocks.{i}.ffn.f.up"),
        *both(_L + "1.fn.w2", "blocks.{i}.ffn.f.down"),
        *both("to_logits", "head.out"),
    ),
    presets={"linformer-nano": dict(vocab=2048, dim=128, length=128, layers=2, heads=2, kernel="linformer(rank=32, shared=False)")},
)  # fmt: skip


def _performer(raw, cls):
    raw = {"dim_head": 64, "ff_mult": 4, "rotary_position_emb": True, "generalized_attention": False, "kernel_fn": "relu", "nb_features": None,
           "qkv_bias": False, "attn_out_bias": False, "tie_embed": False, "ff_glu": False, "feature_redraw_interval": 1000} | raw  # fmt: skip
    features = raw.pop("nb_features")
    act = raw.pop("kernel_fn") if raw.pop("generalized_attention") else raw.pop("kernel_fn") and None
    raw["_kernel"] = f"performer(features={features}, generalized={act}, redraw={raw.pop('feature_redraw_interval') or 0}, padding=values)"
    rotary = raw.pop("rotary_position_emb")
    raw["_position"] = "rope(interleaved=True)" if rotary else "learned"
    raw["_input"] = "sinusoid(layout=halves)" if rotary else "none"
    raw["_biases"] = ("qkv" if raw.pop("qkv_bias") else "") + ("o" if raw.pop("attn_out_bias") else "")
    raw["_hidden"] = raw.get("dim", 512) * raw.pop("ff_mult")
    if raw.pop("ff_glu"):
        raise ValueError("ff_glu=True is not supported; only False is")
    raw["_bias"] = not raw["tie_embed"]
    return raw


def _performer_back(raw, cfg):
    act, features, redraw = arguments(raw.pop("_kernel"), "generalized", "features", "redraw")
    biases = raw.pop("_biases")
    hidden = raw.pop("_hidden") or 4 * cfg.dim
    if hidden % cfg.dim:
        raise ValueError("ff_mult is a whole number")
    raw.pop("_bias")
    return raw | {
        "rotary_position_emb": raw.pop("_position") != "learned" and raw.pop("_input", None) is not None, "nb_features": features,
        "generalized_attention": act is not None, "kernel_fn": act or "relu", "feature_redraw_interval": redraw,
        "qkv_bias": "q" in biases, "attn_out_bias": "o" in biases, "ff_mult": hidden // cfg.dim, "causal": isinstance(cfg, Decoder),
    }  # fmt: skip


_P = "performer.net.layers.{i}."
PERFORMER = Family(
    name="performer-lm",
    config=Encoder,
    keys=(
        Key("num_tokens", "vocab", 20000),
        Key("max_seq_len", "length", 2048),
        Key("dim", "dim", 512),
        Key("depth", "layers", 12),
        Key("heads", "heads", 8),
        Key("dim_head", "head_dim", 64),
        Key("_hidden", "hidden", None),
        Key("_kernel", "kernel", "performer"),
        Key("_position", "position", "learned"),
        Key("_input", "input_position", "none"),
        Key("_biases", "biases", ""),
        Key("_bias", "lm_bias", True),
        Key("tie_embed", "tie", False),
        Key("emb_dropout", "dropout", 0.0),
        Key("causal", "_decoder", False),
    ),
    before=_performer,
    after=_performer_back,
    neutral=("ff_dropout", "attn_dropout", "ff_chunks", "auto_check_redraw"),
    fixed={k: (v,) for k, v in dict(local_attn_heads=0, local_window_size=256, reversible=False, use_scalenorm=False, use_rezero=False,
                                    cross_attend=False, no_projection=False, axial_position_emb=False, axial_position_shape=None,
                                    shift_tokens=False).items()},
    constants=dict(order="pre", final_norm=True, embed_norm=False, norm_eps=1e-5, ffn="plain(gelu)", types=0, pooler=False, transform=None,
                   init="normal"),
    classes={"PerformerLM": dict(config=(Encoder, Decoder), output="lm")},
    table=(
        ("token_emb.weight", "embed.token.weight"),
        ("pos_emb.emb.weight", "embed.position.weight"),
        ("pos_emb.emb", "embed.position.weight"),
        *both(_P + "0.norm", "blocks.{i}.attn.pre"),
        (_P + "0.fn.fast_attention.projection_matrix", "blocks.{i}.attn.f.kernel.projection"),
        *((f"{_P}0.fn.{a}.{leaf}", f"blocks.{{i}}.{b}.{leaf}") for a, b in _LAYER.items() for leaf in ("weight", "bias")),
        *both(_P + "1.norm", "blocks.{i}.ffn.pre"),
        *both(_P + "1.fn.fn.w1", "blocks.{i}.ffn.f.up"),
        *both(_P + "1.fn.fn.w2", "blocks.{i}.ffn.f.down"),
        *both("norm", "norm"),
        *both("to_out", "head.out"),
    ),
    buffers=(r"calls_since_last_redraw$", r"^layer_pos_emb\.emb$"),
    presets={"performer-nano": dict(vocab=2048, length=128, dim=128, layers=2, heads=2, head_dim=64,
                                    kernel="performer(features=None, generalized=None, redraw=1000, padding=values)")},
)  # fmt: skip
FAMILIES = (LINFORMER, PERFORMER)
