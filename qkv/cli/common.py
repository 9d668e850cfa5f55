"""What several verbs need."""

from pathlib import Path


def model_and_files(plain, example):
    """(what, [files]) of a verb's plain words. Raises ValueError where one is missing."""
    if len(plain) < 2:
        raise ValueError(example)
    for f in plain[1:]:
        if not Path(f).is_file():
            raise ValueError(f"{f} is no file here")
    return plain[0], plain[1:]


def open_model(what):
    """(model, tokenizer, folder it came from) of a run, a checkpoint folder or a hub id. Raises ValueError."""
    from .. import models, runtime
    from ..checkpoints import runs
    from ..data import DataError
    from ..data import tokenizer as tokenizers
    from ..training import assemble, folder

    runtime.keep_memory()
    run = folder.find(what)
    if run is not None:
        where, notes = runs.newest(run / "checkpoints")
        for n in notes:
            print(f"note: {n}; an older checkpoint is used")
        if where is None:
            raise ValueError(f"{run} has no checkpoint yet")
    else:
        if what in models.presets() and not Path(what).exists():
            raise ValueError(
                f"'{what}' is a preset without weights. Train it first (qkv train {what}), or name a run, a folder or a hub id"
            )
        where = models.find(what)
    model = models.load(where)
    if not models.has_words(model.config):
        return model, tokenizers.NoTokens(), where
    try:
        tokenizer = tokenizers.load(where)
    except DataError as e:
        raise ValueError(f"{e}; put the model's tokenizer there") from None
    assemble.check_vocabulary(tokenizer, model.config, where)
    return model, tokenizer, where
