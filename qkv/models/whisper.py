"""Whisper (Radford et al., 2022) as published."""

from ..checkpoints.config import Key
from .family import Family
from .speech import SpeechEncoderDecoder
from .transformer import LEGACY, fairseq, published_keys, read_published, write_published

IDS = {"decoder_start_token_id": 50257, "pad_token_id": 50256, "bos_token_id": 50256, "eos_token_id": 50256}
DEFAULTS = {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6, "decoder_attention_heads": 6,
            "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "dropout": 0.0}  # fmt: skip


def _before(raw, cls):
    raw = read_published("gelu", False, IDS)(DEFAULTS | raw, cls)
    raw["max_position_embeddings"] = raw.pop("max_target_positions", 448)
    return raw


def _after(raw, cfg):
    raw["max_target_positions"] = raw.pop("max_position_embeddings")
    return write_published(raw, cfg)


def stack(side, n):
    return [r for r in fairseq(side, n, "pre") if not r[0].endswith("k_proj.bias") and not r[0].endswith("attn.k_proj.bias")]


def size(dim, layers, **more):
    n = dict(
        dim=dim, layers=layers, decoder_layers=layers, heads=dim // 64, decoder_heads=dim // 64, hidden=4 * dim, decoder_hidden=4 * dim
    )
    return n | more


WHISPER = Family(
    name="whisper",
    config=SpeechEncoderDecoder,
    keys=(
        *published_keys((Key("vocab_size", "vocab", 51865), Key("tie_word_embeddings", "tie", True)), 448),
        Key("num_mel_bins", "features", 80),
        Key("max_source_positions", "frames", 1500),
    ),
    before=_before,
    after=_after,
    # scale_embedding changes nothing in the published pass; the rest is of training, of decoding, or of heads that are not built
    neutral=(*LEGACY, "scale_embedding", "begin_suppress_tokens", "forced_decoder_ids", "suppress_tokens", "apply_spec_augment", "classifier_proj_size",
             "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob", "mask_time_length", "mask_time_min_masks", "mask_time_prob",
             "median_filter_width", "use_weighted_layer_sum"),
    constants=dict(order="pre", final_norm=True, norm_eps=1e-5, embed_norm=False, pad_trains=False, position="learned", scaled=False,
                   encoder_position="sinusoid(layout=fairseq)", front="convolved", biases="qvo", lm_bias="none", init="normal"),
    classes={"WhisperForConditionalGeneration": dict(output="lm"), "WhisperModel": dict(output="hidden")},
    table=(
        *((f"{{p}}encoder.conv{n}.{leaf}", f"encoder_embed.front.{ours}.{leaf}") for n, ours in ((1, "first"), (2, "second"))
          for leaf in ("weight", "bias")),
        ("{p}encoder.embed_positions.weight", "encoder_embed.position.weight"),
        ("{p}decoder.embed_tokens.weight", "decoder_embed.token.weight"),
        ("{p}decoder.embed_positions.weight", "decoder_embed.position.weight"),
        *stack("encoder", "{i}"),
        *stack("decoder", "{j}"),
        *((f"{{p}}{s}.layer_norm.{leaf}", f"{s}.norm.{leaf}") for s in ("encoder", "decoder") for leaf in ("weight", "bias")),
    ),
    heads={"lm": (("proj_out.weight", "head.out.weight"),)},
    prefix="model.",
    bare=("WhisperModel",),
    presets={
        "whisper-nano": dict(vocab=512, pad=0, bos=5, eos=6, start=5, length=32, frames=64, features=40, dim=128, layers=3, decoder_layers=2, heads=4, decoder_heads=4, hidden=256,
                             decoder_hidden=256, dropout=0.1),
        "whisper-tiny": size(384, 4),
        "whisper-base": size(512, 6),
        "whisper-small": size(768, 12),
        "whisper-medium": size(1024, 24),
        "whisper-large-v2": size(1280, 32),
        "whisper-large-v3": size(1280, 32, vocab=51866, features=128),
    },
)  # fmt: skip
FAMILIES = (WHISPER,)
