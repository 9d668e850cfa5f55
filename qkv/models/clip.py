"""CLIP (Radford et al., 2021) as published."""

from typing import Any

from ..checkpoints import config as keys_of
from ..checkpoints.config import Key
from .decoder import Decoder
from .family import SPECIAL, Family, activation_name, inside
from .image import ImageEncoder
from .two_towers import TwoTowers

TOWER = (
    Key("num_hidden_layers", "layers", 12),
    Key("hidden_act", "ffn", "quick_gelu", lambda v: f"plain({activation_name(v)})", inside),
    Key("layer_norm_eps", "norm_eps", 1e-5),
    Key("attention_dropout", "attn_dropout", 0.0),
    Key("initializer_range", "init_std", 0.02),
)
PICTURE = (
    *TOWER,
    Key("hidden_size", "dim", 768),
    Key("intermediate_size", "hidden", 3072),
    Key("num_attention_heads", "heads", 12),
    Key("num_channels", "channels", 3),
    Key("image_size", "image", 224),
    Key("patch_size", "patch", 32),
)
TEXT = (
    *TOWER,
    Key("hidden_size", "dim", 512),
    Key("intermediate_size", "hidden", 2048),
    Key("num_attention_heads", "heads", 8),
    Key("vocab_size", "vocab", 49408),
    Key("max_position_embeddings", "length", 77),
    *SPECIAL,
)
SEES: dict[str, Any] = dict(
    patch_bias=False, embed_norm=True, norm_whole=True, final_norm=True, order="pre", position="learned", pooling="first"
)
READS: dict[str, Any] = dict(position="learned", order="pre", final_norm=True, pattern="causal", tie=True)
NEUTRAL = ("projection_dim", "initializer_factor")
TEXT_IDS = dict(pad_token_id=1, bos_token_id=49406, eos_token_id=49407)
P = "vision_model."
LEAVES = ("weight", "bias")


def layers(theirs, ours, i):
    places = {
        "layer_norm1": "attn.pre",
        "layer_norm2": "ffn.pre",
        "mlp.fc1": "ffn.f.up",
        "mlp.fc2": "ffn.f.down",
        "self_attn.out_proj": "attn.f.o",
    }
    places |= {f"self_attn.{x}_proj": f"attn.f.{x}" for x in "qkv"}
    return [(f"{theirs}{i}.{a}.{leaf}", f"{ours}{i}.{b}.{leaf}") for a, b in places.items() for leaf in LEAVES]


def picture(ours):
    return (
        (P + "embeddings.class_embedding", ours + "embed.first"),
        (P + "embeddings.patch_embedding.weight", ours + "embed.cut.weight"),
        (P + "embeddings.position_embedding.weight", ours + "embed.position.weight"),
        *((f"{P}pre_layrnorm.{leaf}", f"{ours}embed.norm.{leaf}") for leaf in LEAVES),
        *layers(P + "encoder.layers.", ours + "blocks.", "{i}"),
        *((f"{P}post_layernorm.{leaf}", f"{ours}last.{leaf}") for leaf in LEAVES),
        ("visual_projection.weight", ours + "head.weight"),
    )


def _before(raw, cls):
    part = lambda name, keys, given: keys_of.read({k: v for k, v in (given | (raw.pop(name, None) or {})).items() if k not in ("model_type", "dtype", "transformers_version")},
                                                  keys, neutral=NEUTRAL, where=name)  # fmt: skip
    raw["_picture"] = ImageEncoder(**part("vision_config", PICTURE, {}) | SEES)
    raw["_end"] = "highest" if (raw.get("text_config") or {}).get("eos_token_id") == 2 else "eos"
    raw["_text"] = Decoder(**part("text_config", TEXT, TEXT_IDS) | READS | {"output": "hidden"})
    return raw


def _after(raw, cfg):
    part = lambda value, keys: {k.theirs: k.save(getattr(value, k.ours)) for k in keys}
    seen, read, end = raw.pop("_picture"), raw.pop("_text"), raw.pop("_end")
    if (end == "highest") != (read.eos == 2):
        raise ValueError("to this layout eos_token_id=2 means the highest id")
    return raw | {
        "vision_config": part(seen, PICTURE) | {"model_type": "clip_vision_model", "projection_dim": cfg.width},
        "text_config": part(read, TEXT) | {"model_type": "clip_text_model", "projection_dim": cfg.width},
    }


def sizes(dim, hidden, layers, heads, patch, text=512, width=512, image=224):
    seen = ImageEncoder(dim=dim, hidden=hidden, layers=layers, heads=heads, patch=patch, image=image, ffn="plain(quick_gelu)", **SEES)
    read = Decoder(vocab=49408, length=77, dim=text, hidden=4 * text, layers=12, heads=text // 64, ffn="plain(quick_gelu)", pad=1, bos=49406, eos=49407,
                   output="hidden", **READS)  # fmt: skip
    return dict(picture=seen, words=read, width=width)


CLIP = Family(
    name="clip",
    config=TwoTowers,
    keys=(
        Key("_picture", "picture", None),
        Key("_text", "words", None),
        Key("_end", "end", "eos"),
        Key("projection_dim", "width", 512),
        Key("logit_scale_init_value", "scale", 2.6592),
    ),
    before=_before,
    after=_after,
    neutral=("initializer_factor",),
    classes={"CLIPModel": dict(output="similarity")},
    table=(
        *picture("picture."),
        ("text_model.embeddings.token_embedding.weight", "words.embed.token.weight"),
        ("text_model.embeddings.position_embedding.weight", "words.embed.position.weight"),
        *layers("text_model.encoder.layers.", "words.blocks.", "{j}"),
        *((f"text_model.final_layer_norm.{leaf}", f"words.norm.{leaf}") for leaf in LEAVES),
        ("text_projection.weight", "project.weight"),
        ("logit_scale", "scale"),
    ),
    buffers=(r"embeddings\.position_ids$",),
    presets={
        "clip-vit-base-32": sizes(768, 3072, 12, 12, 32),
        "clip-vit-base-16": sizes(768, 3072, 12, 12, 16),
        "clip-vit-large-14": sizes(1024, 4096, 24, 16, 14, text=768, width=768),
    },
)
VISION = Family(
    name="clip_vision_model",
    config=ImageEncoder,
    keys=(*PICTURE, Key("projection_dim", "projection", 512)),
    neutral=("initializer_factor",),
    classes={"CLIPVisionModelWithProjection": dict(output="projection", **SEES)},
    table=picture(""),
    buffers=(r"embeddings\.position_ids$",),
)
OWN = {
    "clip-nano": TwoTowers(
        picture=ImageEncoder(
            **SEES | dict(pooling="mean"),
            dim=128,
            hidden=256,
            layers=2,
            heads=4,
            patch=8,
            image=32,
            stem="convs",
            dropout=0.1,
            ffn="plain(quick_gelu)",
        ),
        words=Decoder(
            vocab=1024,
            length=24,
            dim=128,
            hidden=256,
            layers=1,
            heads=4,
            pad=1,
            bos=1022,
            eos=1023,
            dropout=0.2,
            output="hidden",
            ffn="plain(quick_gelu)",
            **READS,
        ),
        width=128,
    ),
}  # with convolutions before the patches, the mean of which stands for the image
FAMILIES = (CLIP, VISION)
