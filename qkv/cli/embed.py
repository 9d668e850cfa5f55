"""qkv embed"""

HELP = """
qkv embed WHAT [TEXT ... | FILE] [key=value ...]

Vectors of sentences by an encoder: a run (last, runs/NAME), a folder or a hub id. Two or more texts: how alike they are. A file: one
sentence a line, written as vectors.npy (sentences, width), or where out= says.

  qkv embed sentence-transformers/all-MiniLM-L6-v2 "a dog runs" "a puppy is running" "tax law"
  qkv embed my-model sentences.txt out=vectors.npy precision=int8

keys: pool (mean or cls)  normalize (true or false)  length (tokens that are read)  precision (fp32, bf16, int8, int4)  threads  out
What the folder itself asks for (modules.json, 1_Pooling) is the default.
"""
KEYS = ("pool", "normalize", "length", "precision", "threads", "out")


def run(words, verb):
    from pathlib import Path

    from .main import options

    plain, given, _ = options(words, KEYS)
    if len(plain) < 2:
        raise ValueError('name an encoder and texts, or a file: qkv embed last "a dog runs" "a cat sleeps"')
    what, *texts = plain
    for key in ("length", "threads"):
        if key in given and (not isinstance(given[key], int) or isinstance(given[key], bool) or given[key] < 1):
            raise ValueError(f"{key}={given[key]!r}: must be a whole number of at least 1")
    if not isinstance(given.get("normalize", True), bool):
        raise ValueError(f"normalize={given['normalize']!r}: must be true or false")
    source, out = None, given.pop("out", None)
    if len(texts) == 1 and Path(texts[0]).is_file():
        from ..data.text import read_text

        source, out = texts[0], Path(str(out or "vectors.npy"))
        texts = [line for line in read_text(source).splitlines() if line.strip()]
        if not texts:
            raise ValueError(f"{source} holds no sentence (one a line)")
    import time

    import numpy as np
    import torch

    from ..embed import Embedder, settings
    from ..words import track
    from .common import open_model

    model, tokenizer, where = open_model(what)
    threads = given.get("threads")
    if threads:
        torch.set_num_threads(threads)
    embedder = Embedder(model, tokenizer, **(settings(where) | given))
    began = time.monotonic()
    vectors = embedder(texts, progress=lambda batches: track(batches, "reading"))
    spent = time.monotonic() - began
    if embedder.cut:
        print(f"note: {embedder.cut} of {len(texts)} texts have more than {embedder.length} tokens; their beginning is used")
    if out is not None:
        path = Path(str(out))
        with open(path, "wb") as f:
            np.save(f, vectors.numpy())
        print(f"{path}: {len(vectors)} vectors of {vectors.shape[1]} numbers, {len(vectors) / max(spent, 1e-9):,.0f} sentences/s")
    if source is None:
        likeness(texts, vectors)


def likeness(texts, vectors):
    """Prints the cosine of every pair, or, of one text, its vector."""
    import torch
    from rich.console import Console
    from rich.table import Table

    if len(texts) == 1:
        print(" ".join(f"{x:.4f}" for x in vectors[0].tolist()))
        return
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    table = Table("", *(str(i + 1) for i in range(len(texts))), title="cosine", title_justify="left")
    for i, (text, row) in enumerate(zip(texts, (unit @ unit.T).tolist())):
        table.add_row(f"{i + 1} {text[:50]}", *(f"[bold]{x:.3f}[/bold]" if x > 0.5 and j != i else f"{x:.3f}" for j, x in enumerate(row)))
    Console().print(table)
