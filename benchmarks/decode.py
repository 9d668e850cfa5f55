"""Decoding: tokens a second of qkv's engine beside transformers' generate and CTranslate2, the same random weights, greedy.

    python benchmarks/decode.py [--models gpt2,llama] [--batch 1,8] [--threads 1] [--rounds 3] [--prompt 128] [--new 256]

limit: what reading the packed weights once a token takes at this machine's memory speed (batch 1).
"""

import argparse
import tempfile

import torch
from peers import bandwidth, converted, need, publish, race, ratio

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
                print(f"  {name}, batch {batch}")
                medians = race(runners, a.rounds, "tokens/s")
                ratio(medians, "qkv fp32", "transformers fp32", "CTranslate2 float32")
                for k in ("int8", "int4", "bf16"):
                    ratio(medians, f"qkv {k}", "CTranslate2 int8")


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


if __name__ == "__main__":
    main()
