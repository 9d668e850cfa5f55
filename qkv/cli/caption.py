"""qkv caption"""

HELP = """
qkv caption WHAT FILE ... [key=value ...]

Words for images by a Flamingo that was trained here. It writes behind a few examples of its training data, the most alike ones.

  qkv caption last emoji.png
  qkv caption last emoji.png shots=0

keys: shots (those of its training)  near (true: the most alike examples; false: any)
"""
KEYS = ("shots", "near")


def run(words, verb):
    from pathlib import Path

    from .common import model_and_files
    from .main import options

    plain, given, _ = options(words, KEYS)
    what, files = model_and_files(plain, "name a model and an image: qkv caption last photo.png")
    from .. import objectives
    from ..core.slots import parse
    from ..data.examples import Example
    from ..training import assemble, folder, recipe
    from .common import open_model

    model, tokenizer, _ = open_model(what)
    if type(model.config).__name__ != "SeeingDecoder":
        raise ValueError(f"{what} is of {type(model.config).__name__}; a Flamingo writes about images")
    found = folder.find(what)
    if found is None:
        raise ValueError(f"{what} is no run; its examples are those of a run's training data")
    whole = recipe.resolve(recipe.load(found / "recipe.toml"))
    name, args, kwargs = parse(whole.train.task)
    task = f"{name}({', '.join([*map(repr, args), *(f'{k}={v!r}' for k, v in (kwargs | given).items())])})"
    objective = objectives.make_task(task, model.config, tokenizer, whole.data.length or model.config.length)
    objective.encode(assemble.labelled(whole.data, objectives.task_of(task), whole.train.seed).train, training=True)
    objective.prepare(model)
    items = objective.encode([Example(Path(f), "", "", f) for f in files])
    objective.nearest(model, items)
    for f, said in zip(files, objective.predict(model, items)):
        print((f"{f}: " if len(files) > 1 else "") + said)
    return 0
