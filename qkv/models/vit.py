"""ViT (Dosovitskiy et al., 2021) and MAE (He et al., 2022) as published."""

from ..checkpoints.config import Key
from ..checkpoints.table import Op
from .family import Family, activation_name, inside
from .image import ImageEncoder, MaskedAutoencoder

one = Op(lambda ts: [t.squeeze(0) for t in ts], lambda ts: [t.unsqueeze(0) for t in ts])
two = Op(lambda ts: [t[0, 0] for t in ts], lambda ts: [t[None, None] for t in ts])


def layers(theirs, ours, i="{i}"):
    """Rows of the blocks of one stack."""
    places = {"attention.output.dense": "attn.f.o", "intermediate.dense": "ffn.f.up", "output.dense": "ffn.f.down",
              "layernorm_before": "attn.pre", "layernorm_after": "ffn.pre"} | {f"attention.attention.{a}": f"attn.f.{a[0]}" for a in ("query", "key", "value")}  # fmt: skip
    return [(f"{theirs}{i}.{a}.{leaf}", f"{ours}{i}.{b}.{leaf}") for a, b in places.items() for leaf in ("weight", "bias")]


def base(before=""):
    """Rows of the encoder; before: what our names begin with."""
    return (
        ("{p}embeddings.cls_token", f"{before}embed.first", two),
        ("{p}embeddings.position_embeddings", f"{before}embed.position.weight", one),
        *((f"{{p}}embeddings.patch_embeddings.projection.{leaf}", f"{before}embed.cut.{leaf}") for leaf in ("weight", "bias")),
        *layers("{p}encoder.layer.", f"{before}blocks."),
        *((f"{{p}}layernorm.{leaf}", f"{before}norm.{leaf}") for leaf in ("weight", "bias")),
    )


KEYS = (
    Key("hidden_size", "dim", 768),
    Key("num_hidden_layers", "layers", 12),
    Key("num_attention_heads", "heads", 12),
    Key("intermediate_size", "hidden", 3072),
    Key("hidden_act", "ffn", "gelu", lambda v: f"plain({activation_name(v)})", inside),
    Key("hidden_dropout_prob", "dropout", 0.0),
    Key("attention_probs_dropout_prob", "attn_dropout", 0.0),
    Key("layer_norm_eps", "norm_eps", 1e-12),
    Key("initializer_range", "init_std", 0.02),
    Key("image_size", "image", 224),
    Key("patch_size", "patch", 16),
    Key("num_channels", "channels", 3),
    Key("qkv_bias", "biases", True, lambda v: "qkvo" if v else "o", lambda v: v == "qkvo"),
)
CONSTANTS = dict(order="pre", final_norm=True, embed_norm=False, class_token=True, pooling="first", norm="layer")
SIZES = {
    "tiny": dict(dim=192, layers=12, heads=3, hidden=768),
    "small": dict(dim=384, layers=12, heads=6, hidden=1536),
    "base": dict(),
    "large": dict(dim=1024, layers=24, heads=16, hidden=4096),
}
VIT = Family(
    name="vit",
    config=ImageEncoder,
    keys=KEYS,
    neutral=("encoder_stride", "pooler_act", "pooler_output_size"),
    classes={"ViTForImageClassification": dict(output="sequence"), "ViTModel": dict(output="hidden", pooler=True)},
    constants=CONSTANTS | {"position": "learned"},
    table=base(),
    heads={
        "sequence": (("classifier.weight", "head.weight"), ("classifier.bias", "head.bias")),
        "hidden": (("pooler.dense.weight", "pool.weight"), ("pooler.dense.bias", "pool.bias")),
    },
    prefix="vit.",
    bare=("ViTModel",),
    presets={
        "vit-nano": dict(image=32, patch=4, channels=3, dim=96, layers=4, heads=4, hidden=192, labels=10),
        **{f"vit-{n}-16": dict(size, labels=1000) for n, size in SIZES.items()},
        "vit-base-32": dict(patch=32, labels=1000),
        "vit-huge-14": dict(patch=14, dim=1280, layers=32, heads=16, hidden=5120, labels=1000),
    },
)
MAE = Family(
    name="vit_mae",
    config=MaskedAutoencoder,
    keys=(
        *KEYS,
        Key("decoder_hidden_size", "decoder_dim", 512),
        Key("decoder_num_hidden_layers", "decoder_layers", 8),
        Key("decoder_num_attention_heads", "decoder_heads", 16),
        Key("decoder_intermediate_size", "decoder_hidden", 2048),
        Key("mask_ratio", "rate", 0.75),
        Key("norm_pix_loss", "norm_pixels", False),
    ),
    classes={"ViTMAEForPreTraining": dict(output="pretraining"), "ViTMAEModel": dict(output="hidden")},
    constants=CONSTANTS | {"position": "sinusoid2d"},
    table=base("encoder."),
    heads={
        "pretraining": (
            ("decoder.mask_token", "decoder.missing", two),
            ("decoder.decoder_pos_embed", "decoder.position.weight", one),
            *((f"decoder.{a}.{leaf}", f"decoder.{b}.{leaf}") for leaf in ("weight", "bias")
              for a, b in (("decoder_embed", "embed"), ("decoder_norm", "norm"), ("decoder_pred", "out"))),
            *layers("decoder.decoder_encoder.layer.", "decoder.blocks.", "{j}"),
        )
    },
    prefix="vit.",
    bare=("ViTMAEModel",),
    aliases=((r"^decoder\.decoder_layers\.", "decoder.decoder_encoder.layer."),),
    presets={
        "mae-nano": dict(image=32, patch=4, dim=96, layers=4, heads=4, hidden=192, decoder_dim=64, decoder_layers=2, decoder_heads=4, decoder_hidden=128),
        **{f"mae-{n}-16": SIZES[n] for n in ("base", "large")},
    },
)  # fmt: skip
FAMILIES = (VIT, MAE)
