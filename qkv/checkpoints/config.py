"""Reading and writing a published config.json by a declared list of keys. An unknown key is refused, never skipped."""

from dataclasses import dataclass

from ..words import nearest


@dataclass(frozen=True)
class Key:
    """Their key, our field, the published default; load and save translate values (load(save(x)) == x)."""

    theirs: str
    ours: str
    default: object
    load: object = staticmethod(lambda v: v)
    save: object = staticmethod(lambda v: v)


# Keys that any config may carry and that change no number of a forward pass.
NEUTRAL = {
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "name_or_path", "use_cache",
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "tokenizer_class", "prefix",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id",
    "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "return_dict", "output_hidden_states",
    "output_attentions", "gradient_checkpointing", "attn_implementation", "_attn_implementation", "torchscript", "language",
    "max_length", "min_length", "num_beams", "num_beam_groups", "early_stopping", "length_penalty", "do_sample", "top_k", "top_p",
    "temperature", "repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "diversity_penalty", "typical_p", "suppress_tokens", "begin_suppress_tokens", "return_dict_in_generate",
    "output_scores", "exponential_decay_length_penalty", "remove_invalid_values", "initializer_range", "initializer_factor", "init_std", "layerdrop", "encoder_layerdrop", "decoder_layerdrop", "directionality",
    "model_max_length", "_num_labels", "n_special", "predict_special_tokens", "_attn_implementation_autoset", "transformers.js_config",
}  # fmt: skip
# Keys that any config may carry, and the only values under which the forward pass is the one built here.
FIXED: dict = {
    "is_decoder": (False,), "is_encoder_decoder": (False,), "add_cross_attention": (False,), "cross_attention_hidden_size": (None,), "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None), "tie_encoder_decoder": (False,), "use_bfloat16": (False,), "tf_legacy_loss": (False,),
    "position_embedding_type": ("absolute",), "quantization_config": (None,),
}  # fmt: skip


def read(raw, keys, *, neutral=(), fixed=None, where="config.json"):
    """{our field: value} of a published config. neutral: more keys without effect; fixed: {key: allowed values}.

    Raises ValueError naming a key that is not known, or a value that is not built here.
    """
    allowed = FIXED | (fixed or {})
    known = {k.theirs for k in keys}
    for key, value in raw.items():
        if key in known or key in neutral or (key in NEUTRAL and key not in allowed):
            continue
        if key not in allowed:
            raise ValueError(
                f"{where}: the key '{key}' ({value!r}) is not known for this architecture.{nearest(key, known | set(allowed))}"
            )
        if value not in allowed[key]:
            raise ValueError(f"{where}: {key}={value!r} is not supported; only {', '.join(map(repr, allowed[key]))} is")
    out = {}
    for k in keys:
        try:
            out[k.ours] = k.load(raw.get(k.theirs, k.default))
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{where}: {k.theirs}={raw.get(k.theirs)!r} cannot be read: {e}") from None
    return out
