"""Decoding: tokens a second of qkv's engine beside transformers' generate and CTranslate2, the same random weights, greedy.

    python benchmarks/decode.py [--models gpt2,llama] [--batch 1,8] [--threads 1] [--rounds 3] [--prompt 128] [--new 256]

llama.cpp takes part where llama-cpp-python and gguf are installed (they are built from source: five minutes), with LLaMA shapes.

limit: what reading the packed weights once a token takes at this machine's memory speed (batch 1).
"""

import argparse
import tempfile
from pathlib import Path

import torch
from peers import bandwidth, converted, need, present, publish, race, ratio

import qkv
from qkv import native, runtime
from qkv.generation import Engine

need("transformers", "ctranslate2")


def shapes(name):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config()).eval(), 50257
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
                    num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True)
    ).eval(), 32000  # fmt: skip


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", default="gpt2,llama")
    p.add_argument("--batch", default="1,8")
    p.add_argument("--precision", default="fp32,bf16,int8,int4")
    for name, value in (("threads", 1), ("rounds", 3), ("prompt", 128), ("new", 256)):
        p.add_argument(f"--{name}", type=int, default=value)
    a = p.parse_args()
    import ctranslate2
    import transformers

    transformers.logging.set_verbosity_error()
    runtime.keep_memory()
    torch.set_num_threads(a.threads)
    speed = bandwidth(a.threads)
    print(f"{a.threads} threads, memory read at {speed:.1f} GB/s, prompt {a.prompt}, {a.new} new tokens")
    for name in a.models.split(","):
        torch.manual_seed(0)
        theirs, vocab = shapes(name)
        with tempfile.TemporaryDirectory() as folder:
            where = publish(theirs, f"{folder}/model", vocab)
            ours, ct2 = qkv.load(where), converted(where)
            lowered = {k: native.lower(ours, k, a.prompt + a.new, a.threads) for k in a.precision.split(",")}
            for k, low in lowered.items():
                print(
                    f"  {name} {k}: weights {low.nbytes / 1e6:,.0f} MB, relative error {low.error:.1e}, limit {speed * 1e9 / low.nbytes:,.0f} tokens/s"
                )
            for batch in map(int, a.batch.split(",")):
                prompts = torch.randint(3, vocab, (batch, a.prompt)).tolist()
                runners = {}
                for k, low in lowered.items():
                    runners[f"qkv {k}"] = lambda low=low: wrote(Engine(low, rows=batch, capacity=a.prompt + a.new), prompts, a.new)
                runners["transformers fp32"] = lambda: transformed(theirs, prompts, a.new)
                for k in ("float32", "int8"):
                    g = ctranslate2.Generator(ct2, device="cpu", compute_type=k, intra_threads=a.threads, inter_threads=1)
                    runners[f"CTranslate2 {k}"] = lambda g=g: translated(g, prompts, a.new)
                if name == "llama" and present("llama_cpp", "gguf"):
                    for k, path in gguf_files(theirs, folder).items():
                        runners[f"llama.cpp {k}"] = lambda w=LlamaCpp(path, batch, a.prompt + a.new, a.threads): w.write(prompts, a.new)
                print(f"  {name}, batch {batch}")
                medians = race(runners, a.rounds, "tokens/s")
                ratio(medians, "qkv fp32", "transformers fp32", "CTranslate2 float32")
                for k, other in (("bf16", "f16"), ("int8", "q8_0"), ("int4", "q4_0")):
                    ratio(medians, f"qkv {k}", "CTranslate2 int8", f"llama.cpp {other}")


def wrote(engine, prompts, new):
    """Tokens that the engine writes. Every request has its own prompt, so nothing is reused."""
    return sum(len(r) for r in engine.generate(prompts, most=new, end=-1))


@torch.inference_mode()
def transformed(model, prompts, new):
    ids = torch.tensor(prompts)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    return out[:, ids.shape[1] :].numel()


def translated(generator, prompts, new):
    words = [[f"t{i}" for i in row] for row in prompts]
    out = generator.generate_batch(words, max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False)
    return sum(len(r.sequences_ids[0]) for r in out)


def gguf_files(model, folder):
    """{"f16" | "q8_0" | "q4_0": path} of a LLaMA's weights as llama.cpp reads them."""
    import ctypes

    import gguf
    import llama_cpp
    import numpy as np

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    gguf_files.keep = silent  # the library holds the pointer only
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    paths, c = {k: f"{folder}/{k}.gguf" for k in ("f16", "q8_0", "q4_0")}, model.config
    if Path(paths["q4_0"]).exists():
        return paths
    w = gguf.GGUFWriter(paths["f16"], "llama")
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_vocab_size(c.vocab_size)
    w.add_tokenizer_model("llama")
    w.add_token_list([f"t{i}".encode() for i in range(c.vocab_size)])
    w.add_token_scores([0.0] * c.vocab_size)
    w.add_token_types([gguf.TokenType.NORMAL] * c.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for name, p in model.state_dict().items():  # heads' rows stay in order: only the speed counts here
        if name != "lm_head.weight":
            there = names.get_name(name, try_suffixes=(".weight",))
            w.add_tensor(there, p.numpy().astype(np.float16 if p.ndim == 2 else np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    for k in ("q8_0", "q4_0"):
        wanted = llama_cpp.llama_model_quantize_default_params()
        wanted.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{k.upper()}")
        llama_cpp.llama_model_quantize(paths["f16"].encode(), paths[k].encode(), ctypes.byref(wanted))
    return paths


class LlamaCpp:
    """Greedy decoding of several rows at once through llama.cpp's own interface."""

    def __init__(self, path, rows, capacity, threads):
        import llama_cpp

        self.lib = llama_cpp
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        c = llama_cpp.llama_context_default_params()
        c.n_ctx, c.n_seq_max, c.n_threads, c.n_threads_batch = rows * capacity, rows, threads, threads
        self.context = llama_cpp.llama_init_from_model(self.model, c)
        self.sampler, self.batch = llama_cpp.llama_sampler_init_greedy(), llama_cpp.llama_batch_init(2048, 0, 1)

    def decode(self, entries):
        """entries: (token, position, row, whether its scores are wanted)."""
        self.batch.n_tokens = len(entries)
        for i, (token, position, row, wanted) in enumerate(entries):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, position, wanted
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, row
        if self.lib.llama_decode(self.context, self.batch):
            raise RuntimeError("llama.cpp could not decode")

    def pick(self, i):
        return self.lib.llama_sampler_sample(self.sampler, self.context, i)

    def write(self, prompts, new):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        last = []
        for row, prompt in enumerate(prompts):
            self.decode([(t, i, row, i == len(prompt) - 1) for i, t in enumerate(prompt)])
            last.append(self.pick(-1))
        for i in range(new - 1):
            self.decode([(t, len(prompts[0]) + i, row, True) for row, t in enumerate(last)])
            last = [self.pick(row) for row in range(len(last))]
        return new * len(prompts)


if __name__ == "__main__":
    main()
