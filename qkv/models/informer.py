"""Informer (Zhou et al., 2021) as published: the library's layout, and the authors' (Informer2020)."""

from typing import Any

from ..checkpoints.config import Key
from ..checkpoints.table import Op
from ..core.slots import parse
from .bert4rec import LEAVES
from .family import Family, activation_name, inside
from .series import MARKS, CalendarEncoderDecoder, SeriesEncoderDecoder
from .tabular import BN
from .transformer import fairseq

HEADS = {"student_t": 3, "normal": 2, "negative_binomial": 2}
table_of = Op(lambda ts: [t[0] for t in ts], lambda ts: [t[None] for t in ts])
point = Op(lambda ts: [t[..., 0] for t in ts], lambda ts: [t[..., None] for t in ts])  # a convolution of width 1


def distils(theirs):
    def rows(cfg):
        for n in range(cfg.layers - 1 if cfg.distil else 0):
            yield from ((f"{theirs}conv_layers.{n}.downConv.{leaf}", f"encoder.distils.{n}.conv.{leaf}") for leaf in LEAVES)
            yield from ((f"{theirs}conv_layers.{n}.norm.{leaf}", f"encoder.distils.{n}.norm.{leaf}") for leaf in BN)

    return rows


def _before(raw, cls):
    drop = float(raw.pop("activation_dropout", 0.1))
    raw["_ffn"] = f"plain({activation_name(raw.pop('activation_function', 'gelu'))}, dropout={drop})"
    prob, factor = raw.pop("attention_type", "prob"), raw.pop("sampling_factor", 5)
    if prob not in ("prob", "full"):
        raise ValueError(f"attention_type={prob!r} is not prob or full")
    raw["_kernel"] = f"probsparse(factor={factor}, sample=layer)" if prob == "prob" else "softmax"
    scaling = raw.pop("scaling", "mean")
    raw["_scaling"] = "mean" if scaling is True or scaling == "mean" else "std" if scaling == "std" else "none"
    count = raw.pop("num_static_categorical_features", 0)
    sizes, widths = raw.pop("cardinality", None) or [], raw.pop("embedding_dimension", None) or []
    raw["_sizes"] = tuple(sizes) if count else None
    raw["_widths"] = (tuple(widths) or tuple(min(50, (n + 1) // 2) for n in sizes)) if count else None
    raw["_times"] = raw.pop("num_time_features", 0) + raw.pop("num_dynamic_real_features", 0)
    raw.setdefault("context_length", raw.get("prediction_length"))
    if not raw.get("prediction_length"):
        raise ValueError("prediction_length is not set: how many steps shall be said?")
    raw["lags_sequence"] = raw.get("lags_sequence") or [1, 2, 3, 4, 5, 6, 7]
    output = raw.pop("distribution_output", "student_t")
    raw["_output"] = output if cls == "InformerForPrediction" else "hidden"
    raw.pop("feature_size", None)  # follows from the others
    return raw


def _after(raw, cfg):
    ffn, kernel = parse(raw.pop("_ffn")), parse(raw.pop("_kernel"))
    if kernel[0] not in ("softmax", "probsparse") or (kernel[0] == "probsparse" and kernel[2].get("sample") != "layer"):
        raise ValueError("this layout has softmax or probsparse(sample=layer)")
    sizes, widths, output = raw.pop("_sizes"), raw.pop("_widths"), raw.pop("_output")
    out = raw | {
        "activation_function": ffn[1][0], "activation_dropout": ffn[2].get("dropout", 0.0), "attention_type": "full" if kernel[0] == "softmax" else "prob",
        "sampling_factor": kernel[2].get("factor", 5), "scaling": {"none": None}.get(cfg.scaling, cfg.scaling), "num_time_features": raw["_times"],
        "num_dynamic_real_features": 0, "num_static_categorical_features": len(sizes or ()), "cardinality": list(sizes or [0]),
        "embedding_dimension": list(widths or [0]), "is_encoder_decoder": True,
    }  # fmt: skip
    out.pop("_times"), out.pop("_scaling")
    return out | ({"distribution_output": output} if output != "hidden" else {})


def _table(cfg):
    rows = [*fairseq("encoder", "{i}"), *fairseq("decoder", "{j}"), *distils("{p}encoder.")(cfg)]
    for theirs, ours in (("encoder", "read_side"), ("decoder", "write_side")):
        rows += [
            (f"{{p}}{theirs}.value_embedding.value_projection.weight", f"{ours}.project.weight"),
            (f"{{p}}{theirs}.embed_positions.weight", f"{ours}.position.weight"),
        ]
        rows += [(f"{{p}}{theirs}.layernorm_embedding.{leaf}", f"{ours}.norm.{leaf}") for leaf in LEAVES]
    rows += [(f"{{p}}embedder.embedders.{k}.weight", f"categories.{k}.weight") for k in range(len(cfg.sizes or ()))]
    return rows + [
        (f"parameter_projection.proj.{k}.{leaf}", f"heads.{k}.{leaf}") for k in range(HEADS.get(cfg.output, 0)) for leaf in LEAVES
    ]


COMMON: dict[str, Any] = dict(order="post", position="none", norm="layer", norm_eps=1e-5, biases="qkvo", pattern="full")
INFORMER = Family(
    name="informer",
    config=SeriesEncoderDecoder,
    keys=(
        Key("input_size", "values", 1),
        Key("context_length", "context", None),
        Key("prediction_length", "horizon", None),
        Key("lags_sequence", "lags", None, tuple, list),
        Key("num_static_real_features", "statics", 0),
        Key("_times", "times", 0),
        Key("_sizes", "sizes", None),
        Key("_widths", "widths", None),
        Key("_scaling", "scaling", "mean"),
        Key("_output", "output", "student_t"),
        Key("_kernel", "kernel", "softmax"),
        Key("_ffn", "ffn", "plain(gelu)"),
        Key("d_model", "dim", 64),
        Key("encoder_layers", "layers", 2),
        Key("decoder_layers", "decoder_layers", 2),
        Key("encoder_attention_heads", "heads", 2),
        Key("decoder_attention_heads", "decoder_heads", 2),
        Key("encoder_ffn_dim", "hidden", 32),
        Key("decoder_ffn_dim", "decoder_hidden", 32),
        Key("dropout", "dropout", 0.05),
        Key("attention_dropout", "attn_dropout", 0.1),
        Key("init_std", "init_std", 0.02),
        Key("distil", "distil", True),
    ),
    before=_before,
    after=_after,
    neutral=("loss", "num_parallel_samples", "is_encoder_decoder"),
    constants=COMMON | dict(final_norm=False, mixed=False),
    classes={"InformerForPrediction": {}, "InformerModel": dict(output="hidden")},
    table=_table,
    prefix="model.",
    bare=("InformerModel",),
)


def _own_before(raw, cls):
    factor = raw.pop("factor", 5)
    raw["_kernel"] = f"probsparse(factor={factor})" if raw.pop("attn", "prob") == "prob" else "softmax"
    raw["_embed"] = {"timeF": "linear"}.get(raw.get("embed", "fixed"), raw.get("embed", "fixed"))
    raw.pop("embed", None)
    freq = raw.pop("freq", "h")
    linear = {"h": 4, "t": 5, "s": 6, "m": 1, "a": 1, "w": 2, "d": 3, "b": 3}
    if freq not in linear:
        raise ValueError(f"freq={freq!r} is not one of {', '.join(linear)}")
    raw["_marks"] = linear[freq] if raw["_embed"] == "linear" else 5 if freq == "t" else 4
    if raw.pop("dec_in", raw.get("enc_in")) != raw.get("enc_in"):
        raise ValueError("dec_in is not enc_in; both sides read the same values here")
    return raw


def _own_after(raw, cfg):
    kernel = parse(raw.pop("_kernel"))
    if kernel[2].get("sample", "query") != "query":
        raise ValueError("this layout draws keys for each query")
    marks, embed = raw.pop("_marks"), raw.pop("_embed")
    freq = "t" if marks == 5 else "h" if marks == 4 else {6: "s", 1: "m", 2: "w", 3: "d"}[marks]
    return raw | {"dec_in": raw["enc_in"], "attn": "full" if kernel[0] == "softmax" else "prob", "factor": kernel[2].get("factor", 5), "freq": freq,
                  "embed": {"linear": "timeF"}.get(embed, embed)}  # fmt: skip


def _own_table(cfg):
    names = {"query": "q", "key": "k", "value": "v", "out": "o"}
    rows = list(distils("encoder.")(cfg))
    for side, theirs, n, attentions, ours in (("encoder", "encoder.attn_layers", "{i}", {"attention": "attn"}, "encoder"),
                                              ("decoder", "decoder.layers", "{j}", {"self_attention": "attn", "cross_attention": "cross"}, "decoder")):  # fmt: skip
        L, B = f"{theirs}.{n}.", f"{ours}.blocks.{n}."
        rows += [
            (f"{L}{a}.{x}_projection.{leaf}", f"{B}{b}.f.{y}.{leaf}")
            for a, b in attentions.items()
            for x, y in names.items()
            for leaf in LEAVES
        ]
        rows += [(f"{L}conv{k}.weight", f"{B}ffn.f.{y}.weight", point) for k, y in ((1, "up"), (2, "down"))]
        rows += [(f"{L}conv{k}.bias", f"{B}ffn.f.{y}.bias") for k, y in ((1, "up"), (2, "down"))]
        branches = [*attentions.values(), "ffn"]
        rows += [(f"{L}norm{k}.{leaf}", f"{B}{b}.post.{leaf}") for k, b in enumerate(branches, 1) for leaf in LEAVES]
        rows += [(f"{side}.norm.{leaf}", f"{ours}.norm.{leaf}") for leaf in LEAVES]
    for theirs, ours in (("enc_embedding", "read_stem"), ("dec_embedding", "write_stem")):
        rows += [(f"{theirs}.value_embedding.tokenConv.{leaf}", f"{ours}.values.{leaf}") for leaf in LEAVES]
        rows += [(f"{theirs}.position_embedding.pe", f"{ours}.position.weight", table_of)]
        if cfg.embed == "linear":
            rows += [(f"{theirs}.temporal_embedding.embed.weight", f"{ours}.calendar.project.weight")]
        else:
            leaf = "emb.weight" if cfg.embed == "fixed" else "weight"
            rows += [(f"{theirs}.temporal_embedding.{m}_embed.{leaf}", f"{ours}.calendar.{m}.weight") for m in MARKS[: cfg.marks]]
    return [*rows, *((f"projection.{leaf}", f"head.{leaf}") for leaf in LEAVES)]


AUTHORS = Family(
    name="informer2020",
    config=CalendarEncoderDecoder,
    keys=(
        Key("enc_in", "values", 7),
        Key("c_out", "said", 7),
        Key("seq_len", "context", 96),
        Key("label_len", "known", 48),
        Key("out_len", "horizon", 24),
        Key("d_model", "dim", 512),
        Key("n_heads", "heads", 8),
        Key("e_layers", "layers", 3),
        Key("d_layers", "decoder_layers", 2),
        Key("d_ff", "hidden", 512),
        Key("dropout", "dropout", 0.0),
        Key("activation", "ffn", "gelu", lambda v: f"plain({activation_name(v)})", inside),
        Key("distil", "distil", True),
        Key("mix", "mixed", True),
        Key("_kernel", "kernel", "softmax"),
        Key("_embed", "embed", "fixed"),
        Key("_marks", "marks", 4),
    ),
    before=_own_before,
    after=_own_after,
    neutral=("output_attention",),
    constants=COMMON | dict(final_norm=True),
    classes={"Informer": dict(output="values")},
    table=_own_table,
    presets={"informer-nano": dict(values=1, said=1, context=96, known=48, horizon=24, dim=64, heads=4, layers=2, decoder_layers=1, hidden=128, dropout=0.05,
                                   kernel="probsparse(factor=5)")},
)  # fmt: skip
FAMILIES = (INFORMER, AUTHORS)
