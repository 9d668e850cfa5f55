"""BART (Lewis et al., 2020): a Transformer trained to restore text that was corrupted in any way."""

from ..checkpoints.config import Key
from .bert import both
from .encoder_decoder import EncoderDecoder
from .family import Family
from .transformer import LEGACY, fairseq, published_keys, read_published, write_published


def _before(raw, cls):
    ids = {"decoder_start_token_id": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return read_published("gelu", False, ids)(raw, cls)


BART = Family(
    name="bart",
    objective='corrupt("infilling+permutation")',
    config=EncoderDecoder,
    keys=published_keys((Key("vocab_size", "vocab", 50265), Key("tie_word_embeddings", "tie", True)), 1024),
    before=_before,
    after=write_published,
    neutral=(*LEGACY, "scale_embedding", "force_bos_token_to_be_generated", "gradient_checkpointing", "normalize_embedding", "classif_dropout"),
    constants=dict(order="post", final_norm=False, norm_eps=1e-5, embed_norm=True, pad_trains=False, position="learned(offset=2)",
                   lm_bias="steady", init="normal"),
    classes={
        "BartForConditionalGeneration": dict(output="lm"),
        "BartModel": dict(output="hidden"),
        "BartForSequenceClassification": dict(output="sequence"),
        "BartForQuestionAnswering": dict(output="span"),
    },
    table=(
        ("{p}shared.weight", "encoder_embed.token.weight"),
        *((f"{{p}}{s}.embed_tokens.weight", f"{s}_embed.token.weight") for s in ("encoder", "decoder")),
        *((f"{{p}}{s}.embed_positions.weight", f"{s}_embed.position.weight") for s in ("encoder", "decoder")),
        *(r for s in ("encoder", "decoder") for r in both(f"{{p}}{s}.layernorm_embedding", f"{s}_embed.norm")),
        *fairseq("encoder", "{i}"),
        *fairseq("decoder", "{j}"),
    ),
    heads={
        "lm": (("lm_head.weight", "head.out.weight"), ("final_logits_bias", "head.steady")),
        "sequence": (*both("classification_head.dense", "head.dense"), *both("classification_head.out_proj", "head.out")),
        "span": tuple(both("qa_outputs", "head.out")),
    },
    prefix="model.",
    bare=("BartModel",),
    spare=dict.fromkeys(("BartForSequenceClassification", "BartForQuestionAnswering"), (r"^final_logits_bias$", r"^lm_head\.weight$")),
    presets={
        "bart-nano": dict(vocab=2048, length=126, dim=128, layers=2, decoder_layers=2, heads=2, decoder_heads=2, hidden=512,
                          decoder_hidden=512, dropout=0.0),
        "bart-mini": dict(vocab=8192, length=254, dim=256, layers=3, decoder_layers=3, heads=4, decoder_heads=4, hidden=1024,
                          decoder_hidden=1024),
        "bart-base": dict(dim=768, layers=6, decoder_layers=6, heads=12, decoder_heads=12, hidden=3072, decoder_hidden=3072),
        "bart-large": {},
    },
)  # fmt: skip
FAMILIES = (BART,)
