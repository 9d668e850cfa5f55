"""One row a family: the reference class, a small published config, and what its inputs are. One battery runs over all rows."""

from dataclasses import dataclass, field


@dataclass
class Row:
    """name; cls: published class; config: published keys; inputs: kinds; checks that do not apply are left out by topology."""

    name: str
    cls: str
    config: dict
    topology: str
    outputs: tuple = ("logits",)
    reference: dict = field(default_factory=dict)  # our output -> the reference's attribute, where it differs


GPT2 = {"vocab_size": 61, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
BERT = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 32}  # fmt: skip
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
FAIRSEQ = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
           "encoder_ffn_dim": 48, "decoder_ffn_dim": 64, "max_position_embeddings": 32}  # fmt: skip
DISTIL = {"vocab_size": 61, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 32}
ELECTRA = BERT | {"embedding_size": 20}
ALBERT = BERT | {"embedding_size": 20, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}
GPT1 = {"vocab_size": 61, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
NEO = {"vocab_size": 61, "max_position_embeddings": 32, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4,
       "attention_types": [[["global", "local"], 1]], "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
BIO = BERT | {"hidden_dropout_prob": 0.0}
BART = FAIRSEQ | {"vocab_size": 61}
SWITCH = T5 | {"num_experts": 3, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
LINEAR = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
LLAMA3 = {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                              "original_max_position_embeddings": 16, "rope_theta": 500000.0}}  # fmt: skip
YARN = {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 1.0,
                            "rope_theta": 10000.0}}  # fmt: skip

FAMILIES = [
    Row("gpt2", "GPT2LMHeadModel", GPT2, "decoder"),
    Row("gpt2-untied", "GPT2LMHeadModel", GPT2 | {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "relu"}, "decoder"),
    Row("gpt2-hidden", "GPT2Model", GPT2, "decoder", ("hidden",)),
    Row("gpt2-sequence", "GPT2ForSequenceClassification", GPT2 | {"num_labels": 3, "pad_token_id": 0}, "decoder-label"),
    Row("gpt2-tokens", "GPT2ForTokenClassification", GPT2 | {"num_labels": 3}, "decoder-label"),
    Row("llama", "LlamaForCausalLM", LLAMA, "decoder"),
    Row("llama-biases", "LlamaForCausalLM", LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True}, "decoder"),
    Row("llama-linear", "LlamaForCausalLM", LLAMA | LINEAR, "decoder"),
    Row("llama-llama3", "LlamaForCausalLM", LLAMA | LLAMA3 | {"num_key_value_heads": 1}, "decoder"),
    Row("llama-yarn", "LlamaForCausalLM", LLAMA | YARN, "decoder"),
    Row("llama-sequence", "LlamaForSequenceClassification", LLAMA | {"num_labels": 3, "pad_token_id": 0}, "decoder-label"),
    Row("llama-span", "LlamaForQuestionAnswering", LLAMA, "decoder-label", ("start_logits", "end_logits")),
    Row("gpt2-span", "GPT2ForQuestionAnswering", GPT2, "decoder-label", ("start_logits", "end_logits")),
    Row("mistral-tokens", "MistralForTokenClassification", LLAMA | {"num_labels": 3}, "decoder-label"),
    Row("mistral-window", "MistralForCausalLM", LLAMA | {"sliding_window": 4}, "decoder"),
    Row("mistral-full", "MistralForCausalLM", LLAMA | {"sliding_window": None}, "decoder"),
    Row("bert-mlm", "BertForMaskedLM", BERT, "encoder"),
    Row("bert", "BertModel", BERT | {"hidden_act": "relu", "type_vocab_size": 3}, "encoder", ("hidden", "pooled")),
    Row("bert-pretraining", "BertForPreTraining", BERT, "encoder", ("prediction_logits", "seq_relationship_logits")),
    Row("bert-next", "BertForNextSentencePrediction", BERT, "encoder"),
    Row("bert-sequence", "BertForSequenceClassification", BERT | {"num_labels": 5}, "encoder"),
    Row("bert-tokens", "BertForTokenClassification", BERT | {"num_labels": 5}, "encoder"),
    Row("bert-span", "BertForQuestionAnswering", BERT, "encoder", ("start_logits", "end_logits")),
    Row("bert-choice", "BertForMultipleChoice", BERT, "choice"),
    Row("t5", "T5ForConditionalGeneration", T5, "encoder-decoder", ("logits", "encoder_hidden")),
    Row("t5-v1.1", "T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, "encoder-decoder",
        ("logits", "encoder_hidden")),
    Row("t5-hidden", "T5Model", T5 | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}, "encoder-decoder", ("hidden",)),
    Row("t5-encoder", "T5EncoderModel", T5, "encoder-plain", ("hidden",)),
    Row("t5-tokens", "T5ForTokenClassification", T5 | {"num_labels": 3}, "encoder-plain"),
    Row("t5-span", "T5ForQuestionAnswering", T5, "encoder-plain", ("start_logits", "end_logits")),
    Row("marian", "MarianMTModel", FAIRSEQ | {"vocab_size": 61, "pad_token_id": 60, "decoder_start_token_id": 60, "scale_embedding": True,
        "activation_function": "swish"}, "encoder-decoder", ("logits", "encoder_hidden")),
    Row("marian-two-vocabularies", "MarianMTModel", FAIRSEQ | {"vocab_size": 61, "decoder_vocab_size": 57, "share_encoder_decoder_embeddings": False,
        "tie_word_embeddings": False, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": 1}, "encoder-decoder",
        ("logits", "encoder_hidden")),
    Row("roberta-mlm", "RobertaForMaskedLM", BERT, "encoder"),
    Row("roberta", "RobertaModel", BERT, "encoder", ("hidden", "pooled")),
    Row("roberta-sequence", "RobertaForSequenceClassification", BERT | {"num_labels": 3}, "encoder"),
    Row("roberta-tokens", "RobertaForTokenClassification", BERT | {"num_labels": 3}, "encoder"),
    Row("roberta-choice", "RobertaForMultipleChoice", BERT, "choice"),
    Row("roberta-span", "RobertaForQuestionAnswering", BERT, "encoder", ("start_logits", "end_logits")),
    Row("distilbert-mlm", "DistilBertForMaskedLM", DISTIL, "encoder-plain"),
    Row("distilbert", "DistilBertModel", DISTIL, "encoder-plain", ("hidden",)),
    Row("distilbert-sequence", "DistilBertForSequenceClassification", DISTIL | {"num_labels": 3}, "encoder-plain"),
    Row("distilbert-tokens", "DistilBertForTokenClassification", DISTIL | {"num_labels": 3}, "encoder-plain"),
    Row("distilbert-choice", "DistilBertForMultipleChoice", DISTIL, "choice"),
    Row("distilbert-span", "DistilBertForQuestionAnswering", DISTIL, "encoder-plain", ("start_logits", "end_logits")),
    Row("electra-detect", "ElectraForPreTraining", ELECTRA | {"hidden_act": "relu"}, "encoder"),
    Row("electra-mlm", "ElectraForMaskedLM", ELECTRA | {"hidden_act": "relu"}, "encoder"),
    Row("electra", "ElectraModel", ELECTRA | {"embedding_size": 32}, "encoder", ("hidden",)),
    Row("electra-sequence", "ElectraForSequenceClassification", ELECTRA | {"num_labels": 3}, "encoder"),
    Row("electra-tokens", "ElectraForTokenClassification", ELECTRA | {"num_labels": 3}, "encoder"),
    Row("electra-choice", "ElectraForMultipleChoice", ELECTRA, "choice"),
    Row("electra-span", "ElectraForQuestionAnswering", ELECTRA, "encoder", ("start_logits", "end_logits")),
    Row("albert-pretraining", "AlbertForPreTraining", ALBERT, "encoder", ("prediction_logits", "sop_logits")),
    Row("albert-mlm", "AlbertForMaskedLM", ALBERT, "encoder"),
    Row("albert", "AlbertModel", ALBERT | {"embedding_size": 32}, "encoder", ("hidden", "pooled")),
    Row("albert-sequence", "AlbertForSequenceClassification", ALBERT | {"num_labels": 3}, "encoder"),
    Row("albert-tokens", "AlbertForTokenClassification", ALBERT | {"num_labels": 3}, "encoder"),
    Row("albert-choice", "AlbertForMultipleChoice", ALBERT, "choice"),
    Row("albert-span", "AlbertForQuestionAnswering", ALBERT, "encoder", ("start_logits", "end_logits")),
    Row("gpt1", "OpenAIGPTLMHeadModel", GPT1, "decoder"),
    Row("gpt1-hidden", "OpenAIGPTModel", GPT1 | {"afn": "silu"}, "decoder", ("hidden",)),
    Row("gpt1-sequence", "OpenAIGPTForSequenceClassification", GPT1 | {"num_labels": 3, "pad_token_id": 0}, "decoder-label"),
    Row("gptneo", "GPTNeoForCausalLM", NEO, "decoder"),
    Row("gptneo-tokens", "GPTNeoForTokenClassification", NEO | {"num_labels": 3}, "decoder-label"),
    Row("gptneo-span", "GPTNeoForQuestionAnswering", NEO, "decoder-label", ("start_logits", "end_logits")),
    Row("biogpt", "BioGptForCausalLM", BIO, "decoder"),
    Row("biogpt-sequence", "BioGptForSequenceClassification", BIO | {"num_labels": 3}, "decoder-label"),
    Row("bart", "BartForConditionalGeneration", BART, "encoder-decoder", ("logits", "encoder_hidden")),
    Row("bart-hidden", "BartModel", BART | {"scale_embedding": True}, "encoder-decoder", ("hidden", "encoder_hidden")),
    Row("bart-span", "BartForQuestionAnswering", BART, "encoder-plain", ("start_logits", "end_logits")),
    Row("switch", "SwitchTransformersForConditionalGeneration", SWITCH, "encoder-decoder", ("logits", "encoder_hidden")),
    Row("switch-hidden", "SwitchTransformersModel", SWITCH | {"expert_capacity": 40}, "encoder-decoder", ("hidden",)),
    Row("bigbird-full", "BigBirdModel", BERT | {"attention_type": "original_full", "use_bias": False, "rescale_embeddings": True}, "encoder", ("hidden", "pooled")),
    Row("fsmt", "FSMTForConditionalGeneration", FAIRSEQ | {"src_vocab_size": 61, "tgt_vocab_size": 53}, "encoder-decoder", ("logits", "encoder_hidden")),
]  # fmt: skip

# A small published config of every family, and what single classes need besides: one battery runs over every published class there is.
SIGHT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16, "patch_size": 4}
SAYS = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 60, "max_position_embeddings": 12,
        "bos_token_id": 57, "eos_token_id": 58, "pad_token_id": 1}  # fmt: skip
PAST = {"prediction_length": 6, "context_length": 12, "lags_sequence": [1, 2, 4], "num_time_features": 2, "d_model": 32, "encoder_layers": 2,
        "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 48}  # fmt: skip
SMALL = {
    "gpt2": GPT2, "openai-gpt": GPT1, "gpt_neo": NEO, "biogpt": BIO, "llama": LLAMA, "mistral": LLAMA, "bert": BERT, "roberta": BERT, "distilbert": DISTIL,
    "electra": ELECTRA, "albert": ALBERT, "t5": T5, "switch_transformers": SWITCH, "bart": BART, "marian": BART | {"pad_token_id": 60, "decoder_start_token_id": 60},
    "gpt3": GPT2 | {"attention_pattern": ["dense", "banded"], "window": 4},
    "bert4rec": {"n_layers": 2, "n_heads": 4, "hidden_size": 32, "inner_size": 64, "n_items": 60, "max_seq_length": 10},
    "big_bird": BERT | {"attention_type": "original_full"},
    "fsmt": FAIRSEQ | {"src_vocab_size": 61, "tgt_vocab_size": 53},
    "torch-transformer": {"d_model": 32, "nhead": 4, "num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": 48},
    "lucidrains-conformer": {"depth": 2, "dim": 32, "dim_head": 8, "heads": 4, "ff_mult": 2, "conv_kernel_size": 5, "max_pos_emb": 4},
    "torchaudio-conformer": {"input_dim": 32, "num_heads": 4, "ffn_dim": 48, "num_layers": 2, "depthwise_conv_kernel_size": 5},
    "wav2vec2-conformer": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": [16, 12],
                           "conv_kernel": [8, 3], "conv_stride": [4, 2], "conv_depthwise_kernel_size": 5, "vocab_size": 20, "num_conv_pos_embeddings": 8,
                           "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0},
    "whisper": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
                "decoder_ffn_dim": 40, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 12, "vocab_size": 61, "pad_token_id": 0,
                "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3},
    "linformer-lm": {"num_tokens": 99, "dim": 32, "seq_len": 16, "depth": 2, "k": 5, "heads": 4},
    "performer-lm": {"num_tokens": 99, "max_seq_len": 32, "dim": 32, "depth": 2, "heads": 4, "dim_head": 8, "nb_features": 16, "causal": True},
    "onmt-shaw": {"head_count": 4, "model_dim": 32, "max_relative_positions": 3},
    "vit": SIGHT, "vit_mae": SIGHT | {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 40},
    "clip": {"projection_dim": 20, "vision_config": SIGHT, "text_config": SAYS}, "clip_vision_model": SIGHT | {"projection_dim": 20},
    "idefics": {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "additional_vocab_size": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cross_layer_interval": 1,
                "vision_config": {"embed_dim": 24, "image_size": 16, "patch_size": 4, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}},
    "flamingo": {"dim": 32, "dim_visual": 24, "dim_head": 8, "heads": 3, "ff_mult": 2, "depth": 2, "perceiver_depth": 2, "num_latents": 4},
    "informer": PAST,
    "informer2020": {"enc_in": 3, "dec_in": 3, "c_out": 2, "seq_len": 16, "label_len": 4, "out_len": 5, "d_model": 32, "n_heads": 4, "e_layers": 2,
                     "d_layers": 1, "d_ff": 40, "embed": "fixed", "freq": "h"},
    "tabnet": {"input_dim": 8, "output_dim": 3, "n_d": 6, "n_a": 5, "n_steps": 3, "virtual_batch_size": 20, "cat_idxs": [2, 5], "cat_dims": [4, 6], "cat_emb_dim": [2, 3]},
    "invase": {"dim": 11, "label_dim": 2, "actor_h_dim": 20, "critic_h_dim": 24, "n_layer": 3, "activation": "relu"},
    "decision_transformer": {"state_dim": 5, "act_dim": 3, "hidden_size": 32, "n_layer": 2, "n_head": 4, "max_ep_len": 50, "n_positions": 64},
}  # fmt: skip
MORE = {"Sequence": {"num_labels": 3}, "Token": {"num_labels": 3}}  # by the word behind "For" in a class's name


def small_class(cls, family):
    """A small published config of a class."""
    more = next((m for word, m in MORE.items() if f"For{word}" in cls), {})
    padded = {"pad_token_id": 0} if more and family in ("gpt2", "openai-gpt", "gpt_neo", "llama", "mistral") else {}
    return SMALL[family] | more | padded
