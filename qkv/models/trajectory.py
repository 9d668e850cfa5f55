"""TrajectoryDecoder: reads returns to go, states and actions in turns, and says the next action (Decision Transformer, Chen et al., 2021).

Dims: B trajectories, T steps, D model, S numbers of a state, A numbers of an action.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..checkpoints.config import Key
from ..core import Context, tokens
from ..core.layers import LayerNorm
from .decoder import Decoder, DecoderModel
from .family import SPECIAL, Family, activation_name, inside
from .gpt2 import TABLE
from .shape import Output, eager, initialise, one_of


@dataclass(frozen=True, kw_only=True)
class TrajectoryDecoder(Decoder):
    """states, actions: numbers of a state and of an action (with discrete: how many actions there are). episode: the longest episode, in steps.
    discrete: an action is one of several, and what is said of it are scores. bounded: actions are squeezed into (-1, 1). returns: is the return to go
    read? Without it this is behaviour cloning. scale: returns are divided by it by those who make batches. length: tokens, three a step. What it was trained on says
    the rest: mean and deviation of states, target, the return that is asked for when nothing is said, and environment, the one it acts in."""

    vocab: int = 1
    states: int = 4
    actions: int = 2
    episode: int = 4096
    discrete: bool = False
    bounded: bool = True
    returns: bool = True
    scale: float = 1.0
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    target: float = 0.0
    environment: str | None = None
    output: str = "actions"

    def __post_init__(self):
        super().__post_init__()
        one_of("output", self.output, ("actions",))
        for name in ("states", "actions", "episode"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.discrete and self.bounded:
            raise ValueError("discrete=true: scores of actions are not bounded; set bounded=false")
        if self.scale <= 0:
            raise ValueError(f"scale={self.scale}: must be above 0")

    @property
    def steps(self):
        """Steps of a trajectory that are read at once."""
        return self.length // 3

    def build(self):
        return initialise(TrajectoryDecoderModel(self), self)


class TrajectoryDecoderModel(DecoderModel):
    """A decoder whose tokens are a return, a state and an action in turns (section 3)."""

    def make_head(self, cfg):
        return None

    def __init__(self, cfg):
        super().__init__(Decoder(**{f: getattr(cfg, f) for f in Decoder.__dataclass_fields__} | {"output": "hidden"}))
        self.config = cfg
        D = cfg.dim
        self.time = nn.Embedding(cfg.episode, D)
        self.see_return, self.see_state, self.see_action = nn.Linear(1, D), nn.Linear(cfg.states, D), nn.Linear(cfg.actions, D)
        self.before = LayerNorm(D)
        self.say_state, self.say_action, self.say_return = nn.Linear(D, cfg.states), nn.Linear(D, cfg.actions), nn.Linear(D, 1)

    def forward(self, states, actions, returns_to_go, timesteps, rewards=None, attention_mask=None):
        """states (B, T, S), actions (B, T, A), returns_to_go (B, T, 1), timesteps (B, T) numbers in the episode, attention_mask (B, T) 0 is padding; rewards are
        not read. Returns action_preds (B, T, A), of the next action at each state, state_preds (B, T, S) and return_preds (B, T, 1) of what follows the action."""
        cfg = self.config
        for name, x, width in (("states", states, cfg.states), ("actions", actions, cfg.actions), ("returns_to_go", returns_to_go, 1)):
            if x.dim() != 3 or x.shape[-1] != width:
                raise ValueError(f"{name} have the shape {tuple(x.shape)}; they must be (batch, steps, {width})")
        B, T = states.shape[:2]
        if eager() and timesteps.numel() and not 0 <= int(timesteps.min()) <= int(timesteps.max()) < cfg.episode:
            raise ValueError(
                f"timesteps from {int(timesteps.min())} to {int(timesteps.max())}; the model knows 0 to {cfg.episode - 1} (episode)"
            )
        time = self.time(timesteps)
        told = self.see_return(returns_to_go if cfg.returns else torch.zeros_like(returns_to_go))
        x = torch.stack([told + time, self.see_state(states) + time, self.see_action(actions) + time], 2).flatten(1, 2)
        full = attention_mask is None or (eager() and bool(attention_mask.all()))
        valid = None if full else attention_mask.bool().repeat_interleave(3, 1)
        place = torch.zeros(1, 3 * T, dtype=torch.long, device=x.device)  # the time of an episode stands for all places
        x = self.embed(None, place, None, self.before(x), 0)
        ctx = Context(tokens(3 * T, valid=valid, device=x.device))
        hidden = self.run(x, ctx).unflatten(1, (T, 3))
        action = self.say_action(hidden[:, :, 1])
        return Output(action_preds=torch.tanh(action) if cfg.bounded else action, state_preds=self.say_state(hidden[:, :, 2]),
                      return_preds=self.say_return(hidden[:, :, 2]), hidden=hidden).with_losses(ctx.losses)  # fmt: skip


LEAVES = ("weight", "bias")
PUBLISHED = Family(
    name="decision_transformer",
    config=TrajectoryDecoder,
    keys=(
        Key("vocab_size", "vocab", 1),
        Key("n_positions", "length", 1024),
        Key("hidden_size", "dim", 128),
        Key("n_layer", "layers", 3),
        Key("n_head", "heads", 1),
        Key("n_inner", "hidden", None),
        Key("activation_function", "ffn", "relu", lambda v: f"plain({activation_name(v)})", inside),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
        Key("resid_pdrop", "dropout", 0.1),
        Key("attn_pdrop", "attn_dropout", 0.1),
        Key("initializer_range", "init_std", 0.02),
        Key("state_dim", "states", 17),
        Key("act_dim", "actions", 4),
        Key("max_ep_len", "episode", 4096),
        Key("action_tanh", "bounded", True),
        *SPECIAL,
    ),
    before=lambda raw, cls: {"bos_token_id": 50256, "eos_token_id": 50256} | raw,
    neutral=("embd_pdrop", "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    fixed={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,)},
    classes={"DecisionTransformerModel": dict(output="actions")},
    constants=dict(order="pre", final_norm=True, position="learned", pattern="causal", discrete=False, returns=True),
    table=(
        *((theirs.replace("{p}", "encoder."), *rest) for theirs, *rest in TABLE),
        ("embed_timestep.weight", "time.weight"),
        *((f"{a}.{leaf}", f"{b}.{leaf}") for a, b in (("embed_return", "see_return"), ("embed_state", "see_state"), ("embed_action", "see_action"), ("embed_ln", "before"),
                                                      ("predict_state", "say_state"), ("predict_action.0", "say_action"), ("predict_return", "say_return"))
          for leaf in LEAVES),
    ),
    buffers=(r"attn\.(masked_)?bias$",),
)  # fmt: skip
OWN = {"decision-nano": TrajectoryDecoder(length=60, dim=64, layers=2, heads=2, states=4, actions=2, episode=500, discrete=True, bounded=False, scale=100.0,
                                          ffn="plain(relu)", dropout=0.1, attn_dropout=0.1)}  # fmt: skip
FAMILIES = (PUBLISHED,)
