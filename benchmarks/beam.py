"""Beam search: sentences a second of qkv beside CTranslate2 and transformers, one encoder-decoder (6 + 6 layers of 512, MarianMT) with
the same random weights, 24 source tokens to 32 target tokens, 5 beams.

    python benchmarks/beam.py [--batch 1,16] [--beams 5] [--threads 1] [--rounds 3] [--vocab 32000]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from peers import need, race, ratio

import qkv
from qkv import native, runtime
from qkv.generation import beam_search

need("transformers", "ctranslate2", "sentencepiece")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--batch", default="1,16")
    for name, value in (("threads", 1), ("rounds", 3), ("beams", 5), ("vocab", 32000), ("source", 24), ("target", 32)):
        p.add_argument(f"--{name}", type=int, default=value)
    a = p.parse_args()
    import ctranslate2
    import transformers
    from transformers import MarianConfig, MarianMTModel

    transformers.logging.set_verbosity_error()
    runtime.keep_memory()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    V = a.vocab
    config = MarianConfig(vocab_size=V, d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8, decoder_attention_heads=8,
                          encoder_ffn_dim=2048, decoder_ffn_dim=2048, pad_token_id=V - 1, eos_token_id=0, decoder_start_token_id=V - 1,
                          forced_eos_token_id=None, bad_words_ids=None, scale_embedding=True, activation_function="swish", max_position_embeddings=512)  # fmt: skip
    theirs = MarianMTModel(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(f"{folder}/m")
        ours = qkv.load(f"{folder}/m")
        ct2 = marian(theirs, f"{folder}/m-ct2", V)
        lowered = {k: native.lower(ours, k, 512, a.threads) for k in ("fp32", "bf16", "int8")}
        lowered["int8, short activations"] = native.lower(ours, "int8", 512, a.threads, short=True)  # rounded as CTranslate2's are
        for batch in map(int, a.batch.split(",")):
            sources = torch.randint(2, V - 1, (batch, a.source)).tolist()
            runners = {
                f"qkv {k}": lambda low=low: len(beam_search(low, sources, a.beams, most=a.target, end=-1)[0]) for k, low in lowered.items()
            }
            for k in ("float32", "int8"):
                t = ctranslate2.Translator(ct2, device="cpu", compute_type=k, intra_threads=a.threads, inter_threads=1)
                runners[f"CTranslate2 {k}"] = lambda t=t: len(
                    t.translate_batch(
                        [[f"t{i}" for i in s] for s in sources],
                        beam_size=a.beams,
                        max_decoding_length=a.target,
                        min_decoding_length=a.target,
                    )
                )

            @torch.inference_mode()
            def transformed(sources=sources):
                out = theirs.generate(torch.tensor(sources), attention_mask=torch.ones(len(sources), a.source, dtype=torch.long),
                                      num_beams=a.beams, max_new_tokens=a.target, min_new_tokens=a.target, do_sample=False)  # fmt: skip
                return len(out)

            runners["transformers fp32"] = transformed
            print(f"  {a.beams} beams, batch {batch}, {a.threads} threads")
            medians = race(runners, a.rounds, "sentences/s")
            ratio(medians, "qkv fp32", "CTranslate2 float32", "transformers fp32")
            ratio(medians, "qkv int8", "CTranslate2 int8")
            ratio(medians, "qkv int8, short activations", "CTranslate2 int8")
            ratio(medians, "qkv bf16", "CTranslate2 int8")


def marian(model, out, vocab):
    """The model as CTranslate2 reads it. Its converter wants the original's tokenizer; its loader of weights only made-up words."""
    from ctranslate2.converters.transformers import MarianMTLoader

    class Loader(MarianMTLoader):
        def get_vocabulary(self, model, tokenizer):
            return ["</s>", "<unk>", *(f"t{i}" for i in range(2, vocab - 1))]  # <pad>, the last one, is left out by the loader

    class Tokenizer:
        bos_token, eos_token, unk_token, pad_token = "<s>", "</s>", "<unk>", "<pad>"
        all_special_tokens = ("</s>", "<unk>", "<pad>")

    spec = Loader()(model, Tokenizer())
    spec.validate()
    spec.optimize()
    Path(out).mkdir()
    spec.save(out)
    return out


if __name__ == "__main__":
    main()
