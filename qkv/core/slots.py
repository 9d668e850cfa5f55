"""Slots: a part is named by a short piece of text, `rope(base=500000)`, and built from it.

A config holds text (it prints, compares, overrides and saves as it stands); the class that the text names takes the arguments
written there, and by name whatever else its constructor asks for (`heads`, `head_dim`, `length` ...) from the model around it.
"""

import ast
import inspect

from ..words import nearest

STRUCTURE = ("dim", "heads", "kv_heads", "head_dim", "hidden", "causal")


def _fits(slot, text, key, value, default):
    """Raises where an argument is of another kind than the parameter's default."""
    for kinds, word in (((bool,), "true or false"), ((int, float), "a number"), ((str,), "a word")):
        if isinstance(default, kinds) and not (isinstance(default, bool) and bool not in kinds):
            good = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
            if not good or value != value or value in (float("inf"), float("-inf")):
                raise ValueError(f"{slot}: '{text}': {key}={value!r} must be {word}")
            return


def _literal(node, text):
    if isinstance(node, ast.Name):  # a bare word is a string: rope(scaling=linear)
        return {"true": True, "false": False, "none": None}.get(node.id, node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"'{text}': arguments are numbers, words, lists or dicts") from None


def parse(text):
    """'sliding(128, x=1)' -> ('sliding', [128], {'x': 1}); raises ValueError on anything that is not such a call."""
    try:
        node = ast.parse(str(text).strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"cannot read '{text}': write a name or a call, e.g. rope or rope(base=500000)") from None
    if isinstance(node, ast.Constant) and node.value is None:
        return "none", [], {}
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id, [_literal(a, text) for a in node.args], {k.arg or "": _literal(k.value, text) for k in node.keywords}
    raise ValueError(f"cannot read '{text}': write a name or a call, e.g. rope or rope(base=500000)")


def build(slot, text, table, **given):
    """Makes what `text` names in `table` ({name: class}); arguments not written in it come from `given` by name.

    Raises ValueError naming the slot, the value and what is allowed.
    """
    name, args, kwargs = parse(text)
    if name not in table:
        raise ValueError(f"{slot}: '{name}' is not one of {', '.join(table)}.{nearest(name, table)}")
    make = table[name]
    params = inspect.signature(make).parameters
    for key in kwargs:
        if key not in params:
            raise ValueError(f"{slot}: {name} takes no '{key}' (it takes {', '.join(params)}).{nearest(key, params)}")
        if key in given and key in STRUCTURE:
            raise ValueError(f"{slot}: '{text}': {key} follows from the model and cannot be set here")
    filled = {k: v for k, v in given.items() if k in params} | kwargs
    free = [k for k in params if k not in filled]
    if len(args) > len(free):
        raise ValueError(f"{slot}: '{text}' has {len(args)} values where {name} takes {len(free)} ({', '.join(free)})")
    filled |= dict(zip(free, args))
    for key in [*kwargs, *free[: len(args)]]:
        _fits(slot, text, key, filled[key], params[key].default)
    missing = [k for k, p in params.items() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and k not in filled]
    if missing:
        raise ValueError(f"{slot}: '{text}' needs {', '.join(missing)}, e.g. {name}({missing[0]}=128)")
    try:
        return make(**filled)
    except TypeError as e:
        raise ValueError(f"{slot}: cannot make '{text}': {e}") from None
    except ValueError as e:
        raise ValueError(f"{slot}: '{text}': {e}") from None
