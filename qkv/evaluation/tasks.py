"""What a fine-tuned model says of held-out examples, and how right it is."""

import contextlib

import torch

from ..data import Pairs
from . import metrics


@torch.no_grad()
def judge(model, objective, items, tokenizer, device="cpu", autocast=contextlib.nullcontext, progress=lambda x: x, rows=64):
    """({loss, metrics of the task}, [what the model says of each item]). The model keeps its mode."""
    was = model.training
    model.eval()
    if hasattr(objective, "judge_all"):  # by more than one item at a time
        held, said = objective.judge_all(model, items, device)
        model.train(was)
        return held, said
    if objective.kind == "caption":
        objective.nearest(model, items)
    order = Pairs(items, tokens=1 << 62, rows=rows, size=[len(i["ids"]) for i in items])
    groups = order.cut(sorted(range(len(items)), key=lambda i: len(items[i]["ids"])))
    said, total, count = [None] * len(items), 0.0, 0
    for group in progress(groups):
        part = [items[i] for i in group]
        with autocast():
            if all(i["wanted"] is not None for i in part):
                loss = objective.loss(model, objective.pairs(part, None).to(device))
                total, count = total + float(loss.metrics["loss"]), count + loss.count
            answers = spoken(model, objective, part, tokenizer, device)
        for i, a in zip(group, answers):
            said[i] = a
    if objective.kind == "answers":
        said = objective.joined(items, said)
    model.train(was)
    held = {"loss": total / count} if count else {}
    if objective.kind == "match":  # found among all of them
        found, said = objective.ranked(items, said)
        return held | found, said
    if count == 0 or any(i["wanted"] is None for i in items):
        return held, said
    return held | scores(objective, items, said), said


def spoken(model, objective, items, tokenizer, device):
    if objective.kind == "answers":
        return objective.spans(model, items, device)
    if objective.kind != "text":
        return objective.predict(model, items, device)
    from ..generation import complete

    most = min(model.config.length, 2 * max(len(i["target"]) for i in items) + 10)
    asked = [i["source"] for i in items]
    if not hasattr(model, "encode"):
        return [a.strip() for a in answered(model, tokenizer, items, most)]
    return [a.strip() for a in complete(model, tokenizer, asked, most=most)]


def answered(model, tokenizer, items, most):
    """A decoder's answers, behind the separator that it was trained with."""
    from ..generation import generate

    rows = generate(model, [[tokenizer.bos, *i["ids"], tokenizer.sep] for i in items], most=most)
    return [tokenizer.decode(r) for r in rows]


def scores(objective, items, said):
    """The metrics of a task."""
    if objective.kind == "answers":
        once = {i["question"]: (i["wanted"], s) for i, s in zip(items, said)}
        return metrics.answers(*map(list, zip(*once.values())))
    wanted = [i["wanted"] for i in items]
    if objective.kind == "tagging":
        return metrics.entity_f1(wanted, said)
    if objective.kind == "text":
        return metrics.generated(wanted, said)
    if objective.kind in ("forecast", "recommend"):
        return objective.scores(items, said)
    if objective.kind == "reconstruct":
        return {}
    if objective.kind == "transcribe":
        return metrics.transcripts(wanted, said)
    if objective.kind == "caption":
        return {"f1": sum(map(metrics.overlap, said, wanted)) / len(said), "exact": sum(s == w for s, w in zip(said, wanted)) / len(said)}
    if objective.kind == "choice":
        return {"accuracy": sum(int(w) == s for w, s in zip(wanted, said)) / len(said)}
    number = {n: i for i, n in enumerate(objective.config.label_names)}
    return metrics.classification([number[str(w)] for w in wanted], [number[s] for s in said], number)
