"""Switch Transformers (Fedus et al., 2022): T5 whose every other feed-forward layer is a choice of experts."""

from ..core.slots import parse
from . import t5
from .encoder_decoder import EncoderDecoder
from .family import Family, activation_name


def _layers(count, sparse):
    """Which layers have experts: every step-th, the last of each step."""
    step = count // sparse if sparse else 0
    return [bool(step) and (i % step == 1 or step == 1) for i in range(count)]


def _experts(cfg, slot, layers):
    """Number of experts of each layer, 0 where it is dense."""
    text = lambda i: slot if isinstance(slot, str) else slot[i % len(slot)]
    parsed = [parse(text(i)) for i in range(layers)]
    return [args[0] if name == "experts" else 0 for name, args, _ in parsed]


def _table(cfg):
    out = [r for r in t5._table(cfg) if ".DenseReluDense." not in r[0]]
    for side, slot, layers, at in (
        ("encoder", cfg.ffn, cfg.layers, 1),
        ("decoder", cfg.decoder_ffn or cfg.ffn, cfg.decoder_layers or cfg.layers, 2),
    ):
        for i, count in enumerate(_experts(cfg, slot, layers)):
            theirs, ours = f"{{p}}{side}.block.{i}.layer.{at}.mlp.", f"{side}.blocks.{i}.ffn.f."
            if count:
                out.append((f"{theirs}router.classifier.weight", f"{ours}router.weight"))
            for e in range(count or 1):
                names = (f"experts.expert_{e}.", f"experts.{e}.") if count else ("", "")
                out += [(f"{theirs}{names[0]}{a}.weight", f"{ours}{names[1]}{b}.weight") for a, b in (("wi", "up"), ("wo", "down"))]
    return out


def _before(raw, cls):
    act, drop = activation_name(raw.pop("dense_act_fn", "relu")), raw.get("dropout_rate", 0.1)
    dense = f"plain({act}, bias=False, dropout={drop})"
    sparse = (
        f"experts({raw.pop('num_experts', 8)}, {act}, bias=False, dropout={drop}, capacity={raw.pop('expert_capacity', 64)}, "
        f"jitter={raw.pop('router_jitter_noise', 0.01)}, balance={raw.pop('router_aux_loss_coef', 0.001)}, "
        f"z={raw.pop('router_z_loss_coef', 0.001)})"
    )
    slots = {}
    for side, key in (("encoder", "num_layers"), ("decoder", "num_decoder_layers")):
        count = raw.get(key) or raw.get("num_layers", 12)
        raw.pop(f"{side}_sparse_step", None)  # follows from the number of sparse layers
        slots[side] = tuple(sparse if s else dense for s in _layers(count, raw.pop(f"num_sparse_{side}_layers", 3)))
    raw = t5._before({"num_layers": 12} | raw | {"feed_forward_proj": act}, cls)
    return raw | {"_ffn": slots["encoder"], "_decoder_ffn": slots["decoder"]}


def _after(raw, cfg):
    slots = {"encoder": raw.pop("_ffn"), "decoder": raw.pop("_decoder_ffn")}
    raw = t5._after(raw | {"_ffn": slots["encoder"][0]}, cfg)
    del raw["feed_forward_proj"]
    for side, slot in slots.items():
        raw[f"num_sparse_{side}_layers"] = sum(s.startswith("experts") for s in slot)
    _, args, given = parse(next(s for s in (*slots["encoder"], *slots["decoder"]) if s.startswith("experts")))
    return raw | {
        "num_experts": args[0], "dense_act_fn": args[1], "expert_capacity": given["capacity"], "router_jitter_noise": given["jitter"],
        "router_aux_loss_coef": given["balance"], "router_z_loss_coef": given["z"],
    }  # fmt: skip


def _slots(experts, layers=2, capacity=64, dropout=0.1):
    dense = f"plain(relu, bias=False, dropout={dropout})"
    sparse = f"experts({experts}, relu, bias=False, dropout={dropout}, capacity={capacity}, jitter=0.01, balance=0.001, z=0.001)"
    both = (dense, sparse) * (layers // 2)
    return dict(layers=layers, decoder_layers=layers, ffn=both, decoder_ffn=both)


_DEFAULT = {"vocab": 32128, "dim": 768, "hidden": 2048, "layers": 12, "decoder_layers": 12, "heads": 12}
SWITCH = Family(
    name="switch_transformers",
    objective='denoise(random_spans)',
    config=EncoderDecoder,
    keys=(*tuple(t5.Key(k.theirs, k.ours, _DEFAULT.get(k.ours, k.default), k.load, k.save) for k in t5.T5.keys), t5.Key("_decoder_ffn", "decoder_ffn", None)),
    before=_before,
    after=_after,
    neutral=("is_encoder_decoder", "add_router_probs", "batch_prioritized_routing", "num_selected_experts", "router_type",
             "expert_dropout", "layer_norm_eps", "feed_forward_proj", "is_gated_act"),
    fixed={"router_bias": (False,), "router_ignore_padding_tokens": (False,), "router_dtype": ("float32",)},
    constants=t5.T5.constants,
    classes={"SwitchTransformersForConditionalGeneration": dict(output="lm"), "SwitchTransformersModel": dict(output="hidden")},
    table=_table,
    heads={"lm": t5.T5.heads["lm"]},
    presets={
        "switch-nano": dict(vocab=2048, length=128, dim=128, heads=2, hidden=256, head_dim=64, dropout=0.0, attn_dropout=0.0)
        | _slots(4, 2, 64, 0.0),
        "switch-base-8": _slots(8, 12) | dict(hidden=3072),
        "switch-base-16": _slots(16, 12) | dict(hidden=3072),
        "switch-base-32": _slots(32, 12) | dict(hidden=3072),
        "switch-base-64": _slots(64, 12) | dict(hidden=3072),
        "switch-base-128": _slots(128, 12) | dict(hidden=3072),
    },
)  # fmt: skip
FAMILIES = (SWITCH,)
