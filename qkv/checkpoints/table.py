"""One reversible table a family: rows (their name, our name or names, op). Nothing else knows a foreign name.

`{p}` in their name is the prefix that head classes put before the base model's names; files with and without it are read. `{i}`
counts layers, `{j}` those of a decoder.
"""

import re
from collections import namedtuple

import torch

from ..words import nearest

Op = namedtuple("Op", "load save")  # list of tensors -> list of tensors, and its inverse
same = Op(lambda ts: ts, lambda ts: ts)
transposed = Op(lambda ts: [t.mT for t in ts], lambda ts: [t.mT for t in ts])  # GPT-2's Conv1D keeps (in, out)


def stacked(n, dim=0):
    """One tensor of theirs holds n of ours, one after another."""
    return Op(lambda ts: list(ts[0].chunk(n, dim)), lambda ts: [torch.cat(ts, dim)])


def then(a, b):
    return Op(lambda ts: b.load(a.load(ts)), lambda ts: a.save(b.save(ts)))


def rows(table, prefix, layers, decoder_layers=0):
    """The table written out: every row of every layer."""
    for theirs, ours, *op in table:
        ours = [ours] if isinstance(ours, str) else list(ours or ())
        counts = range(layers) if "{i}" in theirs else range(decoder_layers) if "{j}" in theirs else (0,)
        for n in counts:
            name = theirs.replace("{i}", str(n)).replace("{j}", str(n)).replace("{p}", prefix)
            yield name, [o.replace("{i}", str(n)).replace("{j}", str(n)) for o in ours], op[0] if op else same


class Layout:
    """How one file spelt things, so that saving gives back the same names and buffers.

    names: canonical name -> the file's. extra: buffers that the model does not use. twice: names of shared tensors that the file
    held a second time. instead: our name -> the canonical name under which a file holds a shared tensor, where that is not its first.
    """

    def __init__(self):
        self.names, self.extra, self.twice, self.instead = {}, {}, [], {}


def parameters(model):
    """{name: tensor} of everything a checkpoint must hold, shared tensors once; and {second name: first name} of the shared."""
    state, first, again = {}, {}, {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if id(tensor) in first:
            again[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            state[name] = tensor
    return state, again


def read(
    table,
    model,
    tensors,
    *,
    prefix="",
    other="",
    spare=(),
    buffers=(),
    aliases=(),
    optional=(),
    layers=0,
    decoder_layers=0,
    where="the file",
):
    """Copies a file's tensors {name: tensor} into the model and returns the Layout that they came in.

    prefix: what this class puts before base names, other: what others do. spare, buffers: regular expressions of names to keep unused. aliases: (regular
    expression, replacement) pairs of older spellings. optional: our names that a file may lack (tables that can be computed).
    Raises ValueError naming every tensor that is left over, missing or of another shape.
    """
    state, again = parameters(model)
    layout, filled, left = Layout(), set(), dict(tensors)
    plan, has = {}, lambda ours: all(o in state or o in again for o in ours)
    for theirs, ours, op in rows(table, prefix, layers, decoder_layers):
        if theirs not in plan or has(ours):  # one name may stand for different places in different classes
            plan[theirs] = ours, op
    spelt = {}
    for actual in tensors:
        name = actual
        for pattern, new in aliases:
            name = re.sub(pattern, new, name)
        if any(re.search(s, name) for s in spare):
            layout.extra[actual] = left.pop(actual)
            continue
        options = (name, prefix + name, name.removeprefix(prefix), name.removeprefix(other))
        known = next((n for n in options if n in plan), None)
        if known is not None and known not in spelt:
            spelt[known] = actual
        elif any(re.search(b, actual) for b in buffers):
            layout.extra[actual] = left.pop(actual)
    problems, held = [], {o for name in spelt for o in plan[name][0]}
    for name, actual in spelt.items():
        ours, op = plan[name]
        tensor = left.pop(actual)
        layout.names[name] = actual
        if (alone := [again[o] for o in ours if o in again and again[o] not in held]) and len(ours) == 1:
            layout.instead[alone[0]], ours = name, alone
        shared = [again[o] for o in ours if o in again]
        if shared:
            layout.twice.append(name)
        unknown = [o for o in ours if o not in state and o not in again]
        if unknown:
            left[actual] = tensor  # a part that this class does not have
            continue
        for ours_name, new in zip(ours, op.load([tensor]), strict=True):
            if ours_name in again:
                continue
            if state[ours_name].shape != new.shape:
                problems.append(f"{actual} has the shape {tuple(tensor.shape)}, the config wants {_shape_of(op, state, ours)}")
                continue
            if ours_name in filled and not torch.equal(state[ours_name].detach(), new.to(state[ours_name])):
                problems.append(f"{actual} holds other values than the tensor it shall be shared with")
                continue
            with torch.no_grad():
                state[ours_name].copy_(new)
            filled.add(ours_name)
    for name in layout.twice:  # a second copy of a shared tensor: equal, or the model's own
        ours, op = plan[name]
        new = op.load([tensors[layout.names[name]]])[0]
        shared = state[again[ours[0]]].detach()
        if not torch.equal(new.to(shared), shared):
            untie(model, ours[0], new)
    missing = [n for n in state if n not in filled and n not in optional]
    inverse = {o: theirs for theirs, (ours, _) in plan.items() for o in ours}
    if left:
        problems.append("left over: " + _listed(left))
    if missing:
        problems.append("missing: " + _listed([inverse.get(n, n) for n in missing]))
        guess = nearest(inverse.get(missing[0], missing[0]), left) if left else ""
        problems[-1] += guess
    if problems:
        raise ValueError(f"{where} does not fit the model that its config describes. " + "; ".join(problems[:6]))
    return layout


def _listed(names, most=8):
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shape_of(op, state, ours):
    try:
        return tuple(op.save([state[o] for o in ours])[0].shape)
    except (RuntimeError, KeyError):
        return "another"


def untie(model, name, value):
    """Gives the parameter `name` a tensor of its own."""
    *path, leaf = name.split(".")
    module = model.get_submodule(".".join(path))
    setattr(module, leaf, torch.nn.Parameter(value.clone().to(getattr(module, leaf))))


def write(table, model, *, prefix="", layers=0, decoder_layers=0, layout=None, skip=()):
    """{name: tensor} of the model in the family's layout, spelt as `layout` says. skip: our names that files do not hold."""
    layout = layout or Layout()
    state, again = parameters(model)
    out, written = {}, set()
    for theirs, ours, op in rows(table, prefix, layers, decoder_layers):
        if set(ours) <= written and theirs not in layout.names:
            continue  # another name of what is there already
        if not ours or any(o in skip and theirs not in layout.names for o in ours):
            continue
        if any(layout.instead.get(o, theirs) != theirs for o in ours):
            continue
        if any(o in again for o in ours) and theirs not in (*layout.twice, *layout.instead.values()):
            continue
        if all(o in state or o in again for o in ours):
            written |= set(ours)
            parts = [state[again.get(o, o)].detach() for o in ours]
            out[layout.names.get(theirs, theirs)] = op.save(parts)[0].contiguous()
    return out | layout.extra
