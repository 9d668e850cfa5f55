"""Layer: one attention layer by itself, vectors in, vectors out (OpenNMT's MultiHeadedAttention with Shaw's relative positions, 2018)."""

from dataclasses import dataclass

from torch import nn

from ..checkpoints.config import Key
from ..core import KERNELS, Attention, Context, build, read_pattern, tokens
from ..core.slots import parse
from .family import Family
from .shape import Output, Shape, initialise, make_position, one_of


@dataclass(frozen=True, kw_only=True)
class Layer(Shape):
    """output: hidden."""

    vocab: int = 1
    length: int = 1
    layers: int = 1
    position: str = "none"
    output: str = "hidden"

    def build(self):
        return initialise(LayerModel(self), self)


class LayerModel(nn.Module):
    """An attention layer."""

    def __init__(self, cfg):
        super().__init__()
        one_of("output", cfg.output, ("hidden",))
        self.config = cfg
        position = make_position(cfg, heads=cfg.heads, causal=False)
        if position.site != "layer":
            raise ValueError(f"position={cfg.position} lives in the {position.site}; a single layer carries none, rope or shaw")
        kernel = build("kernel", cfg.layer("kernel", 0), KERNELS, dropout=cfg.attn_dropout, length=cfg.length, heads=cfg.heads,
                       head_dim=cfg.head_dim or cfg.dim // cfg.heads)  # fmt: skip
        self.attn = Attention(cfg.dim, cfg.heads, kv_heads=cfg.kv_heads, head_dim=cfg.head_dim, pattern=read_pattern(cfg.layer("pattern", 0)),
                              position=position, kernel=kernel, biases=cfg.biases)  # fmt: skip

    def forward(self, hidden_states, attention_mask=None):
        """hidden_states (B, T, D); attention_mask (B, T), 0 is padding -> hidden (B, T, D)."""
        valid = None if attention_mask is None else attention_mask.bool()
        toks = tokens(hidden_states.shape[1], valid=valid, device=hidden_states.device)
        return Output(hidden=self.attn(hidden_states, Context(toks)))


def _before(raw, cls):
    far = raw.pop("max_relative_positions", 0)
    if far < 0:
        raise ValueError(f"max_relative_positions={far}: must be 0 or more")
    raw["_position"] = f"shaw(far={far}, shared=True)" if far else "none"
    raw["_biases"] = "qkvo" if raw.pop("add_qkvbias", False) else ""
    return raw


def _after(raw, cfg):
    given = parse(raw.pop("_position"))[2]
    return raw | {"max_relative_positions": given.get("far", 0), "add_qkvbias": raw.pop("_biases") == "qkvo"}


NAMES = {"linear_query": "q", "linear_keys": "k", "linear_values": "v", "final_linear": "o"}
SHAW = Family(
    name="onmt-shaw",
    config=Layer,
    keys=(
        Key("head_count", "heads", 8),
        Key("model_dim", "dim", 512),
        Key("dropout", "attn_dropout", 0.0),
        Key("_position", "position", "none"),
        Key("_biases", "biases", ""),
    ),
    before=_before,
    after=_after,
    neutral=("attn_type",),
    classes={"MultiHeadedAttention": dict(output="hidden")},
    table=(
        *((f"{a}.{leaf}", f"attn.{b}.{leaf}") for a, b in NAMES.items() for leaf in ("weight", "bias")),
        ("relative_positions_embeddings.weight", "attn.position.keys"),
    ),
)
FAMILIES = (SHAW,)
