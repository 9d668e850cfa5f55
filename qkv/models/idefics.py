"""Flamingo's published layouts: Idefics (Laurençon et al., 2023), and the parts of open_flamingo (Awadalla et al., 2023)."""

from typing import Any

from ..checkpoints import config as keys_of
from ..checkpoints.config import Key
from ..checkpoints.table import stacked
from ..core.slots import parse
from .clip import LEAVES, SEES
from .clip import layers as tower
from .decoder import Decoder
from .family import SPECIAL, Family, activation_name, inside
from .flamingo import CrossModal, SeeingDecoder, nano
from .image import ImageEncoder
from .llama import TABLE, _rope

PICTURE = (
    Key("num_hidden_layers", "layers", 32),
    Key("hidden_act", "ffn", "gelu", lambda v: f"plain({activation_name(v)})", inside),
    Key("layer_norm_eps", "norm_eps", 1e-5),
    Key("attention_dropout", "attn_dropout", 0.0),
    Key("initializer_range", "init_std", 0.02),
    Key("embed_dim", "dim", 768),
    Key("intermediate_size", "hidden", 5120),
    Key("num_attention_heads", "heads", 16),
    Key("num_channels", "channels", 3),
    Key("image_size", "image", 224),
    Key("patch_size", "patch", 14),
)
WORDS = (
    Key("vocab_size", "vocab", 32000),
    Key("hidden_size", "dim", 4096),
    Key("intermediate_size", "hidden", 11008),
    Key("num_hidden_layers", "layers", 32),
    Key("num_attention_heads", "heads", 32),
    Key("max_position_embeddings", "length", 2048),
    Key("rms_norm_eps", "norm_eps", 1e-6),
    Key("initializer_range", "init_std", 0.02),
    Key("tie_word_embeddings", "tie", False),
    Key("dropout", "dropout", 0.0),
    *SPECIAL,
)
READS: dict[str, Any] = dict(norm="rms", order="pre", final_norm=True, biases="", pattern="causal", output="lm")
RESAMPLER = {"latents": ("resampler_n_latents", 64), "layers": ("resampler_depth", 6), "heads": ("resampler_n_heads", 16),
             "head_dim": ("resampler_head_dim", 96), "qk_norm": ("qk_layer_norms_perceiver", False)}  # fmt: skip
PLAIN = ("freeze_lm_head", "freeze_text_layers", "freeze_text_module_exceptions", "freeze_vision_layers", "freeze_vision_module_exceptions",
         "alpha_initializer", "alphas_initializer_range", "initializer_factor")  # fmt: skip


def _before(raw, cls):
    given = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | {k: raw.pop(k) for k in [k.theirs for k in WORDS] if k in raw}
    act = activation_name(raw.pop("hidden_act", "silu"))
    rope = _rope({k: raw.pop(k) for k in ("rope_parameters", "rope_scaling", "rope_theta") if k in raw}, 10000.0)
    words = keys_of.read(given, WORDS)
    seen = {k: v for k, v in (raw.pop("vision_config", None) or {}).items() if k not in ("model_type", "dtype", "transformers_version")}
    eyes = dict(raw.pop("perceiver_config", None) or {})
    raw["_words"] = Decoder(**words | READS, position=rope, ffn=f"gated({act}, bias=False)")
    raw["_picture"] = ImageEncoder(**keys_of.read(seen, PICTURE, neutral=PLAIN, where="vision_config") | SEES | {"output": "hidden"})
    uses = raw.pop("use_resampler", False)
    args = ", ".join(f"{ours}={eyes.get(theirs, default)}" for ours, (theirs, default) in RESAMPLER.items())
    raw["_resampler"] = f"perceiver({args}, mult=4, act=relu)" if uses else "none"
    raw["_ffn"] = f"gated({act}, bias=False)"
    raw |= {"_heads": words["heads"], "_hidden": words["hidden"], "_eps": words["norm_eps"]}
    return raw


def _after(raw, cfg):
    part = lambda value, keys: {k.theirs: k.save(getattr(value, k.ours)) for k in keys}
    words, seen, resampler = raw.pop("_words"), raw.pop("_picture"), parse(raw.pop("_resampler"))
    rope = parse(words.position)
    if (
        rope[0] != "rope"
        or set(rope[2]) - {"base"}
        or raw.pop("_ffn") != words.ffn
        or (raw.pop("_heads"), raw.pop("_hidden"), raw.pop("_eps")) != (words.heads, words.hidden, words.norm_eps)
    ):
        raise ValueError("in this layout the gated blocks have the shape of the language model's, which turns by rope")
    eyes = {theirs: resampler[2].get(ours, default) for ours, (theirs, default) in RESAMPLER.items()}
    return raw | part(words, WORDS) | {
        "hidden_act": inside(words.ffn), "rope_parameters": {"rope_theta": rope[2].get("base", 10000.0), "rope_type": "default"},
        "vision_config": part(seen, PICTURE) | {"model_type": "idefics_vision"},
        "perceiver_config": eyes | {"model_type": "idefics_perciever"}, "use_resampler": resampler[0] == "perceiver",
    }  # fmt: skip


def table(cfg):
    V, G = "{p}vision_model.", "{p}gated_cross_attn_layers."
    rename = lambda ours: f"words.{ours}"
    rows = [(theirs, rename(ours), *op) for theirs, ours, *op in TABLE if "embed_tokens" not in theirs]
    more = ".base" if cfg.more else ""
    rows += [("{p}embed_tokens.weight", f"words.embed.token{more}.weight"), ("lm_head.weight", f"words.head.out{more}.weight"),
             ("{p}embed_tokens.additional_embedding.weight", "words.embed.token.more.weight"),
             ("lm_head.additional_fc.weight", "words.head.out.more.weight")]  # fmt: skip
    rows += [(V + "embeddings.class_embedding", "picture.embed.first"), (V + "embeddings.patch_embedding.weight", "picture.embed.cut.weight"),
             (V + "embeddings.position_embedding.weight", "picture.embed.position.weight")]  # fmt: skip
    rows += [
        (f"{V}{a}.{leaf}", f"picture.{b}.{leaf}")
        for a, b in (("pre_layrnorm", "embed.norm"), ("post_layernorm", "last"))
        for leaf in LEAVES
    ]
    rows += tower(V + "encoder.layers.", "picture.blocks.", "{j}")
    for n, i in enumerate(range(0, cfg.words.layers, cfg.every)):
        L, ours = f"{G}{n}.", f"words.blocks.{i}."
        rows += [(f"{L}alpha_cross_attn", f"{ours}look.gate.weight"), (f"{L}alpha_dense", f"{ours}think.gate.weight"),
                 (f"{L}input_layernorm.weight", f"{ours}look.pre.weight"), (f"{L}post_attention_layernorm.weight", f"{ours}think.pre.weight")]  # fmt: skip
        rows += [(f"{L}cross_attn.{x}_proj.weight", f"{ours}look.f.attn.{x}.weight") for x in "qkvo"]
        rows += [(f"{L}cross_attn.{x}_layer_norm.weight", f"{ours}look.f.attn.{x}_norm.weight") for x in "qk"]
        rows += [(f"{L}mlp.{x}_proj.weight", f"{ours}think.f.{x}.weight") for x in ("gate", "down", "up")]
    P = "{p}perceiver_resampler."
    rows += [(P + "latents", "resampler.latents"), *((f"{P}layer_norm.{leaf}", f"resampler.norm.{leaf}") for leaf in LEAVES)]
    for n in range(parse(cfg.resampler)[2].get("layers", 6) if cfg.resampler != "none" else 0):
        A, F, ours = f"{P}blocks.{n}.0.", f"{P}blocks.{n}.1.", f"resampler.blocks.{n}."
        both = (
            ("context_layer_norm", "attn.f.media"),
            ("latents_layer_norm", "attn.pre"),
            ("q_layer_norm", "attn.f.attn.q_norm"),
            ("k_layer_norm", "attn.f.attn.k_norm"),
        )
        rows += [(f"{A}{a}.{leaf}", f"{ours}{b}.{leaf}") for a, b in both for leaf in LEAVES]
        rows += [(f"{A}{a}_proj.weight", f"{ours}attn.f.attn.{b}.weight") for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o"))]
        rows += [(f"{F}ln.{leaf}", f"{ours}ffn.pre.{leaf}") for leaf in LEAVES]
        rows += [(f"{F}fc.weight", f"{ours}ffn.f.up.weight"), (f"{F}c_proj.weight", f"{ours}ffn.f.down.weight")]
    return rows


IDEFICS = Family(
    name="idefics",
    config=SeeingDecoder,
    keys=(
        Key("_words", "words", None),
        Key("_picture", "picture", None),
        Key("_resampler", "resampler", "none"),
        Key("_ffn", "look_ffn", "gated(silu, bias=False)"),
        Key("_heads", "look_heads", 32),
        Key("_hidden", "look_hidden", 11008),
        Key("_eps", "look_eps", 1e-6),
        Key("qk_layer_norms", "look_qk_norm", False),
        Key("cross_layer_interval", "every", 1),
        Key("additional_vocab_size", "more", 0),
        Key(
            "alpha_type",
            "gate",
            "float",
            lambda v: {"float": "number", "vector": "vector"}[v],
            lambda v: {"number": "float", "vector": "vector"}[v],
        ),
    ),
    before=_before,
    after=_after,
    neutral=PLAIN,
    constants=dict(look_norm="rms", look_head_dim=None, see="all"),
    classes={"IdeficsForVisionText2Text": dict(output="lm")},
    table=table,
    prefix="model.",
    buffers=(r"rotary_emb\.inv_freq$", r"position_ids$"),
)


def _open_before(raw, cls):
    raw["_resampler"] = (f"perceiver(latents={raw.pop('num_latents', 64)}, layers={raw.pop('perceiver_depth', 6)}, heads={raw.get('heads', 8)}, "
                         f"head_dim={raw.get('dim_head', 64)}, mult={raw.get('ff_mult', 4)})")  # fmt: skip
    raw["_hidden"] = raw.pop("ff_mult", 4) * raw.get("dim", 512)
    return raw


def _open_after(raw, cfg):
    name, _, given = parse(raw.pop("_resampler"))
    hidden = raw.pop("_hidden")
    if name != "perceiver" or (given["heads"], given["head_dim"], given["mult"] * cfg.dim) != (cfg.look_heads, cfg.look_head_dim, hidden):
        raise ValueError("in this layout the resampler has the heads and the width of the gated blocks")
    return raw | {"num_latents": given["latents"], "perceiver_depth": given["layers"], "ff_mult": hidden // cfg.dim}


def open_table(cfg):
    rows = [("perceiver.latents", "resampler.latents"), *((f"perceiver.norm.{leaf}", f"resampler.norm.{leaf}") for leaf in LEAVES)]
    split = stacked(2)
    for n in range(parse(cfg.resampler)[2]["layers"]):
        P, ours = f"perceiver.layers.{n}.", f"resampler.blocks.{n}."
        rows += [
            (f"{P}{a}.{leaf}", f"{ours}{b}.{leaf}")
            for a, b in (("0.norm_media", "attn.f.media"), ("0.norm_latents", "attn.pre"), ("1.0", "ffn.pre"))
            for leaf in LEAVES
        ]
        rows += [
            (f"{P}{a}.weight", f"{ours}{b}.weight")
            for a, b in (("0.to_q", "attn.f.attn.q"), ("0.to_out", "attn.f.attn.o"), ("1.1", "ffn.f.up"), ("1.3", "ffn.f.down"))
        ]
        rows += [(f"{P}0.to_kv.weight", [f"{ours}attn.f.attn.{x}.weight" for x in "kv"], split)]
    for n in range(cfg.layers):
        G, ours = f"gated_cross_attn_layers.{n}.", f"blocks.{n}."
        rows += [(f"{G}attn_gate", f"{ours}look.gate.weight"), (f"{G}ff_gate", f"{ours}think.gate.weight")]
        rows += [(f"{G}{a}.{leaf}", f"{ours}{b}.{leaf}") for a, b in (("attn.norm", "look.pre"), ("ff.0", "think.pre")) for leaf in LEAVES]
        rows += [
            (f"{G}{a}.weight", f"{ours}{b}.weight")
            for a, b in (("attn.to_q", "look.f.attn.q"), ("attn.to_out", "look.f.attn.o"), ("ff.1", "think.f.up"), ("ff.3", "think.f.down"))
        ]
        rows += [(f"{G}attn.to_kv.weight", [f"{ours}look.f.attn.{x}.weight" for x in "kv"], split)]
    return rows


OPEN = Family(
    name="flamingo",
    config=CrossModal,
    keys=(
        Key("dim", "dim", 512),
        Key("dim_visual", "seen_dim", 1024),
        Key("dim_head", "look_head_dim", 64),
        Key("heads", "look_heads", 8),
        Key("depth", "layers", 2),
        Key("only_attend_immediate_media", "see", True, lambda v: "last" if v else "previous", lambda v: v == "last"),
        Key("_resampler", "resampler", "perceiver"),
        Key("_hidden", "look_hidden", None),
    ),
    before=_open_before,
    after=_open_after,
    constants=dict(look_ffn="plain(gelu, bias=False)", look_norm="layer", look_eps=1e-5, gate="number"),
    classes={"FlamingoCrossModal": dict(output="hidden")},
    table=open_table,
)
FAMILIES = (IDEFICS, OPEN)
OWN = {"flamingo-nano": nano()}
