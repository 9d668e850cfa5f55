"""Embeddings: a vector a text, from an encoder. Texts are sorted by length and packed without padding where the kernels know the
model.

Dims: B texts, T tokens, D model.
"""

import json
from pathlib import Path

import torch

from .data.batches import padded
from .native import lower_if

POOLS = ("mean", "cls")
TOKENS = 1024  # in one pass: their activations stay in the caches
FORMAT = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


class Embedder:
    """Texts to vectors.

    model: an encoder, or an encoder-decoder, whose encoder is used. pool: mean of the last hidden states, or cls, the first one.
    normalize: to length 1. length: tokens that are read of a text (the model's context by default). precision: fp32, bf16, int8 or
    int4. Raises ValueError for what cannot be.
    """

    def __init__(self, model, tokenizer, *, pool="mean", normalize=False, length=None, precision="fp32", threads=None):
        kind = type(model.config).__name__
        if kind == "Decoder":
            raise ValueError("a decoder reads only backwards; embeddings need an encoder, or an encoder-decoder")
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is not one of {', '.join(POOLS)}")
        self.model, self.tokenizer, self.pool, self.normalize = model.eval(), tokenizer, pool, normalize
        self.length = min(length or model.config.length, model.config.length)
        self.before, self.after = [], []  # special tokens around a text
        if kind == "Encoder" and tokenizer.cls is not None:
            self.before, self.after = [tokenizer.cls], [] if tokenizer.sep is None else [tokenizer.sep]
        elif kind == "EncoderDecoder" and tokenizer.eos is not None:
            self.after = [tokenizer.eos]
        if self.length <= len(self.before) + len(self.after):
            raise ValueError(f"length={length}: there must be room for a token beside the special ones")
        self.low, self.cut = lower_if(model, precision, self.length, threads, short=precision == "int8"), 0

    def ids(self, texts):
        """Token ids of each text, cut to `length`; `cut` counts those that were longer."""
        room = self.length - len(self.before) - len(self.after)
        rows = self.tokenizer.encode_all(texts)
        self.cut = sum(len(r) > room for r in rows)
        rows = [[*self.before, *r[:room], *self.after] for r in rows]
        if not all(rows):
            raise ValueError(f"text {next(i for i, r in enumerate(rows) if not r)} is empty, and the tokenizer puts nothing around it")
        return rows

    @torch.inference_mode()
    def __call__(self, texts, progress=lambda batches: batches):
        """(B, D) float32. progress: wraps the list of batches (a progress bar)."""
        rows = self.ids(list(texts))
        out = torch.empty(len(rows), self.model.config.dim)
        for batch in progress(self.batches(rows)):
            out[batch] = self.read([rows[i] for i in batch])
        return torch.nn.functional.normalize(out, dim=-1) if self.normalize else out

    def batches(self, rows):
        """Numbers of texts of like length, about TOKENS tokens at a time."""
        out, now, size = [], [], 0
        for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
            if now and size + len(rows[i]) > TOKENS:
                out.append(now)
                now, size = [], 0
            now.append(i)
            size += len(rows[i])
        return [*out, now] if now else out

    def read(self, rows):
        """Vectors (B, D) of lists of ids."""
        if self.low is not None:
            hidden, lengths = self.low.hidden(rows)
            starts = lengths.cumsum(0) - lengths
            if self.pool == "cls":
                return hidden[starts.long()]
            which = torch.arange(len(rows)).repeat_interleave(lengths)
            return torch.zeros(len(rows), hidden.shape[1]).index_add_(0, which, hidden) / lengths[:, None]
        device = next(self.model.parameters()).device
        ids, there = (x.to(device) for x in padded(rows, self.model.config.pad or 0))
        if hasattr(self.model, "encode"):
            hidden = self.model.encode(ids, there)[0].float()
        else:
            hidden = self.model(input_ids=ids, attention_mask=there)["hidden"].float()
        if self.pool == "cls":
            return hidden[:, 0].cpu()
        return ((hidden * there[..., None]).sum(1) / there.sum(1, keepdim=True)).cpu()


def settings(folder):
    """{pool, normalize, length} that a folder of sentence embeddings asks for (modules.json, 1_Pooling, sentence_bert_config.json);
    empty where it says nothing. Raises ValueError for a pooling that is not known here."""
    folder, out = Path(folder), {}
    read = lambda path: json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    modules = read(folder / "modules.json") or []
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            asked = [k for k, on in read(folder / module["path"] / "config.json").items() if k.startswith("pooling_mode") and on is True]
            if len(asked) != 1 or asked[0] not in FORMAT:
                raise ValueError(f"{folder}: the pooling {', '.join(asked)} is not one of {', '.join(FORMAT)}")
            out["pool"] = FORMAT[asked[0]]
        elif kind == "Normalize":
            out["normalize"] = True
        elif kind != "Transformer":
            raise ValueError(f"{folder}: the module {kind} is not one of Transformer, Pooling, Normalize")
    if length := read(folder / "sentence_bert_config.json").get("max_seq_length"):
        out["length"] = length
    return out


__all__ = ["Embedder", "settings"]
