"""wav2vec 2.0 with Conformer blocks (Baevski et al., 2020; Wang et al., 2020, fairseq S2T) as published: it reads samples."""

from ..checkpoints.config import Key
from ..checkpoints.table import Op
from ..core.slots import parse
from .conformer import MOVING, NORM, SpeechEncoder
from .family import SPECIAL, Family, activation_name, arguments, inside

heads = Op(lambda ts: [t[:, None] for t in ts], lambda ts: [t[:, 0] for t in ts])
POSITIONS = {"relative": "xl(layout=interleaved)", "rotary": "rope_before", None: "none"}


def _before(raw, cls):
    act = activation_name(raw.pop("hidden_act", "gelu"))
    widths, kernels, strides = (tuple(raw.pop(k, d)) for k, d in (("conv_dim", (512,) * 7), ("conv_kernel", (10, 3, 3, 3, 3, 2, 2)),
                                                                  ("conv_stride", (5, 2, 2, 2, 2, 2, 2))))  # fmt: skip
    if raw.pop("num_feat_extract_layers", len(widths)) != len(widths):
        raise ValueError(f"num_feat_extract_layers is not {len(widths)}, the number of conv_dim")
    extract = activation_name(raw.pop("feat_extract_activation", "gelu"))
    raw["_front"] = (f"waves(widths={widths}, kernels={kernels}, strides={strides}, norm={raw.pop('feat_extract_norm', 'group')}, "
                     f"act={extract}, bias={bool(raw.pop('conv_bias', False))})")  # fmt: skip
    raw["_ffn"] = f"plain({act}, dropout={float(raw.pop('activation_dropout', 0.1))})"
    drop = float(raw.pop("conformer_conv_dropout", 0.1))
    raw["_conv"] = f"convolution(kernel={raw.pop('conv_depthwise_kernel_size', 31)}, act={act}, bias=False, padding=kept, dropout={drop})"
    kind, base = raw.pop("position_embeddings_type", "relative"), raw.pop("rotary_embedding_base", 10000)
    if kind not in POSITIONS:
        raise ValueError(f"position_embeddings_type={kind!r} is not relative, rotary or null")
    raw["_position"] = f"rope_before(base={float(base)})" if kind == "rotary" else POSITIONS[kind]
    masks = raw.pop("mask_time_prob", 0.05) > 0 or raw.pop("mask_feature_prob", 0.0) > 0
    raw["_unread"] = (raw.pop("num_conv_pos_embeddings", 128), raw.pop("num_conv_pos_embedding_groups", 16), int(masks))
    raw.pop("mask_feature_prob", None)
    raw.setdefault("vocab_size", 32)
    raw["vocab_size"] = raw["vocab_size"] or 32
    return raw


def _after(raw, cfg):
    front, ffn, conv, place, unread = (raw.pop(k) for k in ("_front", "_ffn", "_conv", "_position", "_unread"))
    position, _, rope = parse(place)
    widths, kernels, strides, norm, act, bias = arguments(front, "widths", "kernels", "strides", "norm", "act", "bias")
    kernel, conv_bias, padding, conv_dropout = arguments(conv, "kernel", "bias", "padding", "dropout")
    (dropout,), kinds = arguments(ffn, "dropout"), {v.partition("(")[0]: k for k, v in POSITIONS.items()}
    if padding != "kept" or conv_bias or parse(ffn)[0] != "plain" or position not in kinds or not unread:
        raise ValueError(f"this layout has convolutions without bias, one of them of positions, and position {', '.join(kinds)}")
    return raw | {
        "conv_dim": list(widths), "conv_kernel": list(kernels), "conv_stride": list(strides), "feat_extract_norm": norm,
        "feat_extract_activation": act, "conv_bias": bias, "hidden_act": inside(ffn), "activation_dropout": dropout,
        "conv_depthwise_kernel_size": kernel, "conformer_conv_dropout": conv_dropout, "position_embeddings_type": kinds[position],
        "rotary_embedding_base": int(rope.get("base", 10000)), "num_feat_extract_layers": len(widths),
        "num_conv_pos_embeddings": unread[0], "num_conv_pos_embedding_groups": unread[1], "mask_time_prob": 0.05 * unread[2], "mask_feature_prob": 0.0,
    }  # fmt: skip


def table(cfg):
    both = lambda theirs, ours, leaves=NORM: [(f"{theirs}.{leaf}", f"{ours}.{leaf}") for leaf in leaves]
    L, B = "{p}encoder.layers.{i}.", "blocks.{i}."
    rows = [r for a, b in (("feature_projection.layer_norm", "front.norm"), ("feature_projection.projection", "front.out"),
                           ("encoder.layer_norm", "norm")) for r in both("{p}" + a, b)]  # fmt: skip
    front = parse(cfg.front)[2]
    for n in range(len(front["widths"])):
        theirs = f"{{p}}feature_extractor.conv_layers.{n}."
        rows += both(theirs + "conv", f"front.convs.{n}", NORM if front["bias"] else NORM[:1])
        if n == 0 or front["norm"] == "layer":
            rows += both(theirs + "layer_norm", f"front.norms.{n}")
    places = {"ffn1_layer_norm": "first.pre", "ffn1.intermediate_dense": "first.f.up", "ffn1.output_dense": "first.f.down",
              "ffn2_layer_norm": "last.pre", "ffn2.intermediate_dense": "last.f.up", "ffn2.output_dense": "last.f.down",
              "final_layer_norm": "last.post", "self_attn_layer_norm": "attn.pre", "conv_module.layer_norm": "conv.pre",
              **{f"self_attn.linear_{a}": f"attn.f.{b}" for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))}}  # fmt: skip
    rows += [r for a, b in places.items() for r in both(L + a, B + b)]
    for a, b in (("pointwise_conv1", "up"), ("depthwise_conv", "depth"), ("pointwise_conv2", "down")):
        rows += both(f"{L}conv_module.{a}", f"{B}conv.f.{b}", NORM[:1])
    rows += both(f"{L}conv_module.batch_norm", f"{B}conv.f.norm", (*NORM, *MOVING))
    if cfg.position.startswith("xl"):
        rows += [(f"{L}self_attn.linear_pos.weight", f"{B}attn.f.position.project.weight")]
        rows += [(f"{L}self_attn.pos_bias_{x}", f"{B}attn.f.position.{x}", heads) for x in "uv"]
    C = "{p}encoder.pos_conv_embed.conv."
    rows += [(C + "bias", "unread.bias"), (C + "parametrizations.weight.original0", "unread.size"),
             (C + "parametrizations.weight.original1", "unread.weight"), ("{p}masked_spec_embed", "unread.mask")]  # fmt: skip
    if cfg.position.startswith("rope_before"):
        rows += [("{p}encoder.embed_positions.inv_freq", "blocks.0.attn.f.position.waves")]
    return rows


WAV2VEC2 = Family(
    name="wav2vec2-conformer",
    config=SpeechEncoder,
    keys=(
        Key("vocab_size", "vocab", 32),
        Key("hidden_size", "dim", 768),
        Key("num_hidden_layers", "layers", 12),
        Key("num_attention_heads", "heads", 12),
        Key("intermediate_size", "hidden", 3072),
        Key("hidden_dropout", "dropout", 0.1),
        Key("attention_dropout", "attn_dropout", 0.1),
        Key("layer_norm_eps", "front_eps", 1e-5),
        Key("initializer_range", "init_std", 0.02),
        Key("_front", "front", "none"),
        Key("_ffn", "ffn", "plain(gelu)"),
        Key("_conv", "conv", "convolution"),
        Key("_position", "position", "none"),
        Key("_unread", "unread", None),
        *SPECIAL,
    ),
    before=lambda raw, cls: _before({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | raw, cls),
    after=_after,
    constants=dict(final_norm=True, features=1, biases="qkvo", norm_eps=1e-5),
    # of training, of heads that are not built, and of a convolution of positions that no published pass reads
    neutral=("adapter_kernel_size", "adapter_stride", "num_adapter_layers", "output_hidden_size", "apply_spec_augment", "classifier_proj_size", "codevector_dim",
             "contrastive_logits_temperature", "ctc_loss_reduction", "ctc_zero_infinity", "diversity_loss_weight", "feat_proj_dropout", "feat_quantizer_dropout",
             "final_dropout", "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob", "mask_time_length", "mask_time_min_masks", "mask_time_prob",
             "max_source_positions", "num_codevector_groups", "num_codevectors_per_group", "num_conv_pos_embedding_groups", "num_conv_pos_embeddings",
             "num_negatives", "proj_codevector_dim", "tdnn_dilation", "tdnn_dim", "tdnn_kernel", "use_weighted_layer_sum", "xvector_output_dim"),
    fixed={"add_adapter": (False,)},
    classes={"Wav2Vec2ConformerForCTC": dict(output="ctc"), "Wav2Vec2ConformerModel": dict(output="hidden")},
    table=table,
    heads={"ctc": (("lm_head.weight", "head.weight"), ("lm_head.bias", "head.bias"))},
    prefix="wav2vec2_conformer.",
    bare=("Wav2Vec2ConformerModel",),
    aliases=((r"pos_conv_embed\.conv\.weight_g$", "pos_conv_embed.conv.parametrizations.weight.original0"), (r"pos_conv_embed\.conv\.weight_v$", "pos_conv_embed.conv.parametrizations.weight.original1")),
    arguments={"input_values": "input_features"},
    presets={"wav2vec2-conformer-large": dict(dim=1024, layers=24, heads=16, hidden=4096, ffn="plain(silu, dropout=0.1)",
                                              conv="convolution(kernel=31, act=silu, bias=False, padding=kept, dropout=0.1)")},
)  # fmt: skip
FAMILIES = (WAV2VEC2,)
