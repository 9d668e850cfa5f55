"""qkv convert"""

HELP = """
qkv convert SOURCE OUT [key=value ...] [--force]

Writes a model as a published folder (config.json, model.safetensors, tokenizer.json) that qkv and the reference library load.

  qkv convert last my-model                                       a run's newest checkpoint
  qkv convert stories260K.bin stories tokenizer=tok512.bin        llama2.c
  qkv convert aren_transliteration/ aren                          CTranslate2 (model.bin and its vocabularies)
  qkv convert OLD-FOLDER NEW-FOLDER dtype=bfloat16                another precision

keys: tokenizer (a tokenizer file or folder)  dtype (float32, bfloat16, float16, float64)
An existing OUT is kept unless --force is given.
"""


def run(words, verb):
    import shutil
    from pathlib import Path

    from .main import options

    plain, given, flags = options(words, ("tokenizer", "dtype"), ("force",))
    if len(plain) != 2:
        raise ValueError("name a source and a folder to write: qkv convert SOURCE OUT")
    source, out = plain[0], Path(plain[1])
    if out.exists() and "force" not in flags:
        raise ValueError(f"{out} exists; choose another folder, or pass --force to replace it")
    import torch

    from .. import models
    from ..data import DataError
    from ..data import tokenizer as tokenizers
    from ..models import convert
    from ..training import folder

    kinds = ("float32", "bfloat16", "float16", "float64")
    if given.get("dtype", "float32") not in kinds:
        raise ValueError(f"dtype={given['dtype']}: must be one of {', '.join(kinds)}")
    path, tokenizer, vocabularies = Path(source), None, []
    if path.suffix == ".bin" and path.name != "model.bin":
        model = convert.llama2c(path)
        if given.get("tokenizer", "").endswith(".bin"):
            tokenizer = tokenizers.from_pieces(convert.llama2c_pieces(given.pop("tokenizer"), model.config.vocab))
    elif path.name == "model.bin" or (path / "model.bin").exists():
        model = convert.ctranslate2(path)
        vocabularies = sorted((path if path.is_dir() else path.parent).glob("*vocabulary.txt"))
    else:
        from .common import open_model

        if folder.find(source):
            model, tokenizer, _ = open_model(source)
        else:
            where = models.find(source)
            model = models.load(where)
            try:
                tokenizer = tokenizers.load(where)
            except DataError:
                print(f"note: {where} has no tokenizer; none is written")
    if given.get("tokenizer"):
        tokenizer = tokenizers.load(given["tokenizer"])
    if given.get("dtype"):
        model.to(getattr(torch, given["dtype"]))
    models.save(model, out, tokenizer)
    for v in vocabularies:
        shutil.copy(v, out / v.name)
    kind = model.published or f"qkv's own layout ({type(model.config).__name__})"
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters as {kind}" + (", with its tokenizer" if tokenizer else ""))
