"""What a fine-tuned model says of held-out examples, and how right it is."""

import contextlib

import torch

from ..data import Pairs
from . import metrics


@torch.no_grad()
def judge(
    model,
    objective,
    items,
    tokenizer,
    device="cpu",
    autocast=contextlib.nullcontext,
    progress=lambda x: x,
    rows=64,
):
    """({loss, metrics of the task}, [what the model says of each item]). The model keeps its mode.

    rows: items that are read at a time, which changes nothing. Every item with a label (its `wanted` is not
    None) counts once, in the loss and in the metrics; of the others the model only says something.
    `unended` of an item is set where its answer was stopped at its longest. Raises ValueError where there
    is no item.
    """
    if not items:
        raise ValueError("there are no examples to score: the task left all of them out, or there were none")
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
        labelled = [i for i in part if i["wanted"] is not None]
        with autocast():
            if labelled:
                loss = objective.loss(model, objective.pairs(labelled, None).to(device))
                total, count = total + float(loss.metrics["loss"]), count + loss.count
            answers = spoken(model, objective, part, items, tokenizer, device)
        for i, a in zip(group, answers):
            said[i] = a
    model.train(was)
    if objective.kind == "match":  # found among all of them
        found, nearest = objective.ranked(items, said)
        return {"loss": objective.among_all(model, said)} | found, nearest
    if objective.kind == "answers":
        said = objective.joined(items, said)
    told = [(i, s) for i, s in zip(items, said) if i["wanted"] is not None]
    return ({"loss": total / max(1, count)} | scores(objective, *map(list, zip(*told))) if told else {}), said


def spoken(model, objective, part, items, tokenizer, device):
    """What the model says of a part of the items."""
    if objective.kind == "answers":
        return objective.spans(model, part, device)
    if objective.kind != "text":
        return objective.predict(model, part, device)
    most = 2 * max(len(i["target"]) for i in items) + 10  # of all: an answer does not depend on its batch
    told = written(model, tokenizer, [i["ids"] for i in part], most)
    for i, (_, unended) in zip(part, told):
        i["unended"] = unended
    return [text for text, _ in told]


def written(model, tokenizer, sources, most, beams=0, penalty=1.0):
    """[(answer, was it stopped at its longest?)] of a model, or a lowered one, to sources (lists of ids).

    It is asked as it was trained on pairs: an encoder-decoder reads a source and its end, a decoder goes on
    behind a separator. An answer has at most `most` tokens, and no more than the model has positions left;
    beams > 0 searches for the best.
    """
    from ..generation import generate
    from ..generation.beam import beam_search

    pair = hasattr(getattr(model, "model", model), "encode")
    end = [] if tokenizer.eos is None else [tokenizer.eos]
    prompts = [[*s, *end] if pair else [tokenizer.bos, *s, tokenizer.sep] for s in sources]
    room = [max(1, min(most, model.config.length + 1 - (1 if pair else len(p)))) for p in prompts]
    if beams:
        rows = beam_search(model, prompts, beams, most=max(room), penalty=penalty)[0]
    else:
        rows = generate(model, prompts, most=max(room))
    return [(tokenizer.decode(row[:most]), len(row) >= most) for row, most in zip(rows, room, strict=True)]


def scores(objective, items, said):
    """The metrics of a task, of labelled items and what is said of them."""
    if objective.kind in ("forecast", "recommend", "reconstruct"):
        return objective.scores(items, said)
    if objective.kind == "answers":
        once = {i["question"]: (i["wanted"], s) for i, s in zip(items, said)}
        return metrics.answers(*map(list, zip(*once.values())))
    wanted = [i["wanted"] for i in items]
    if objective.kind == "tagging":
        return metrics.entity_f1(wanted, said)
    if objective.kind == "text":
        return metrics.generated([str(w) for w in wanted], said, objective.tokenize)
    if objective.kind == "transcribe":
        return metrics.transcripts(wanted, said)
    if objective.kind == "caption":
        f1 = sum(map(metrics.overlap, said, wanted)) / len(said)
        return {"f1": f1, "exact": sum(s == w.strip() for s, w in zip(said, wanted)) / len(said)}
    if objective.kind == "choice":
        return {"accuracy": sum(int(w) == s for w, s in zip(wanted, said)) / len(said)}
    return metrics.classification([str(w) for w in wanted], said)
