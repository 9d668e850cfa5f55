"""qkv recommend"""

HELP = """
qkv recommend WHAT [ITEM ...] [key=value ...]

What somebody takes next, by a run that was trained with task=recommend (BERT4Rec, GRU4Rec): after the items that you name, the oldest first, or
after all that a user of its data has taken.

  qkv recommend last B0017 B0042 B0360
  qkv recommend last user=A1YJEY40YUW4SE top=5

keys: user  top (10)  seen (false: items already taken are left out)
"""
KEYS = ("user", "top", "seen")


def run(words, verb):
    from .main import options

    plain, given, _ = options(words, KEYS)
    if not plain or (len(plain) == 1) == ("user" not in given):
        raise ValueError("name a run, and either items or a user of its data: qkv recommend last B0017 B0042, or user=NAME")
    what, *items = map(str, plain)
    top, seen = given.get("top", 10), given.get("seen", False)
    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise ValueError(f"top={top!r}: must be a whole number of at least 1")
    if not isinstance(seen, bool):
        raise ValueError(f"seen={seen!r}: must be true or false")
    from .. import objectives
    from ..training import folder, recipe
    from ..words import nearest
    from .common import open_model

    model, tokenizer, _ = open_model(what)
    where = folder.find(what)
    whole = recipe.resolve(recipe.load(where / "recipe.toml")) if where else None
    if whole is None or not str(whole.train.task).startswith("recommend"):
        raise ValueError(f"{what} is no run of task=recommend")
    task = objectives.make_task(whole.train.task, model.config, tokenizer, whole.data.length or model.config.length)
    if "user" in given:
        user = f"user {given['user']}"
        found = [e for e in task.read(whole.data, whole.data.source, "test", whole=True) if e.where == user]
        if not found:
            raise ValueError(f"user={given['user']}: there is no such user in {whole.data.source}")
        items = found[0].text.split()
        print(f"has taken: {' '.join(items[-10:])}" + (f"  (and {len(items) - 10} before)" if len(items) > 10 else ""))
    known = tokenizer.engine.get_vocab()
    strange = [i for i in items if i not in known]
    if strange and "user" not in given:
        raise ValueError(f"item {strange[0]} was not seen in training.{nearest(strange[0], known)}")
    for name, share in task.best(model, [i for i in items if i in known], top, seen):
        print(f"{100 * share:6.2f} %  {name}")
    return 0
