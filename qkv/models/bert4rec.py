"""BERT4Rec (Sun et al., 2019) as RecBole publishes it: BERT's encoder over the items that a user took."""

from ..checkpoints.config import Key
from .encoder import Encoder
from .family import Family, activation_name, inside

LEAVES = ("weight", "bias")
A, F = "trm_encoder.layer.{i}.multi_head_attention.", "trm_encoder.layer.{i}.feed_forward."
PLACES = {f"{A}{a}": f"blocks.{{i}}.attn.f.{a[0]}" for a in ("query", "key", "value")} | {
    A + "dense": "blocks.{i}.attn.f.o", A + "LayerNorm": "blocks.{i}.attn.post", F + "dense_1": "blocks.{i}.ffn.f.up", F + "dense_2": "blocks.{i}.ffn.f.down",
    F + "LayerNorm": "blocks.{i}.ffn.post", "LayerNorm": "embed.norm", "output_ffn": "head.dense", "output_ln": "head.norm",
}  # fmt: skip
BERT4REC = Family(
    name="bert4rec",
    config=Encoder,
    keys=(
        Key("n_items", "vocab", 60, lambda v: v + 1, lambda v: v - 1),
        Key("max_seq_length", "length", 50),
        Key("hidden_size", "dim", 64),
        Key("n_layers", "layers", 2),
        Key("n_heads", "heads", 2),
        Key("inner_size", "hidden", 256),
        Key("hidden_act", "ffn", "gelu", lambda v: f"plain({activation_name(v)})", inside),
        Key("layer_norm_eps", "norm_eps", 1e-12),
        Key("hidden_dropout_prob", "dropout", 0.2),
        Key("attn_dropout_prob", "attn_dropout", 0.2),
        Key("initializer_range", "init_std", 0.02),
    ),
    neutral=("mask_ratio", "loss_type", "transform_ft"),
    constants=dict(order="post", final_norm=False, embed_norm=True, types=0, pooler=False, transform="gelu", lm_bias=True, tie=True, pad=0, mask_pad=True, unsaid=1, position="learned"),
    classes={"BERT4Rec": dict(output="items")},
    table=(
        ("item_embedding.weight", "embed.token.weight"),
        ("position_embedding.weight", "embed.position.weight"),
        ("output_bias", "head.out.bias"),
        *((f"{a}.{leaf}", f"{b}.{leaf}") for a, b in PLACES.items() for leaf in LEAVES),
    ),
    presets={"bert4rec-nano": dict(vocab=1000, length=50, dim=64, layers=2, heads=2, hidden=128, dropout=0.2, attn_dropout=0.2)},
)  # fmt: skip
FAMILIES = (BERT4REC,)
