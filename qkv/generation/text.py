"""Text to text: prompts encoded, answers decoded as they come, stop strings watched for."""

from .beam import beam_search
from .decoding import begin
from .engine import Engine, NGram
from .sampling import Sampling, finish, generate, steps


def encode(model, tokenizer, prompt):
    """Ids of a prompt as the model, or the lowered one, was trained to read it."""
    if _pair(model):
        ids = tokenizer.encode(prompt)
        return [*ids, tokenizer.eos] if tokenizer.eos is not None else ids
    ids = tokenizer.prompt(prompt)
    if not ids:  # nothing to go on from: what stands before a text
        before = tokenizer.eos if tokenizer.eos is not None else tokenizer.bos
        ids = [] if before is None else [before]
    return ids


def stream(model, tokenizer, prompt, sampling=None, *, most=200, stop=(), guess=0, beyond=finish):
    """Yields pieces of the answer as text. stop: strings that end it; they are not part of it. guess: how many tokens are guessed
    ahead (see engine.NGram); the answer is the same. beyond: what a full context means (see sampling.steps)."""
    ids, told, text = [], 0, ""
    hold = max((len(s) for s in stop), default=0)
    before = encode(model, tokenizer, prompt)
    for token in _tokens(model, before, sampling, most, guess, beyond):
        ids.append(token)
        text = said(model, tokenizer, before, ids)
        cut = min((i for s in stop if (i := text.find(s, max(0, told - hold))) >= 0), default=-1)
        if cut >= 0:
            yield text[told:cut]
            return
        whole = text.rstrip("�")
        safe = len(whole) - _partial(whole, stop)
        if safe > told:  # half a character, or what may become a stop string, waits
            yield text[told:safe]
            told = safe
    yield text[told:]


def said(model, tokenizer, before, ids):
    """The text of new ids as it goes on from what stands before: pieces that begin with a space keep it."""
    if _pair(model) or not before:
        return tokenizer.decode(ids)
    head, whole = tokenizer.decode(before[-1:]), tokenizer.decode([before[-1], *ids])
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids)


def _pair(model):
    return hasattr(getattr(model, "model", model), "encode")


def _tokens(model, ids, sampling, most, guess, beyond):
    if guess:
        capacity = min(len(ids) + most + guess, model.config.length)
        engine = Engine(model, rows=1, capacity=capacity, guesser=NGram(guess))
        while most > 0 and ids:
            request = engine.submit(ids, sampling, most=most)
            yield from request.stream()
            most -= len(request.tokens)
            text = [*(request.written if engine.pair else ids), *request.tokens]
            ids = beyond(text, capacity) if request.reason == "length" and most > 0 and not engine.pair else None
        return
    for (token,) in steps(model, [ids], sampling, most=most, beyond=beyond):
        if token is None:
            return
        yield token


def _partial(text, stop):
    """Length of the longest end of `text` that a stop string begins with."""
    return max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)


def complete(model, tokenizer, prompts, sampling=None, *, most=200, beams=0, penalty=1.0, stop=(), beyond=finish):
    """[answer] of each prompt, all in one batch; beams > 0 searches instead of sampling. stop and beyond: see `stream`."""
    ids = [encode(model, tokenizer, p) for p in prompts]
    if beams:
        rows = beam_search(model, ids, beams, most=most, penalty=penalty)[0]
        written, context = begin(getattr(model, "model", model), ids)
        for before, row in zip(written, rows):  # a beam does not go on behind a full context, but whoever asks is told
            if context is not None and len(row) < most and len(before) + len(row) > context:
                beyond([*before, *row], context)
    else:
        rows = generate(model, ids, sampling, most=most, beyond=beyond)
    out = []
    for before, row in zip(ids, rows):
        text = said(model, tokenizer, before, row)
        cuts = [text.find(s) for s in stop if s in text]
        out.append(text[: min(cuts)] if cuts else text)
    return out


def sample_text(model, run, prompt, most):
    """A sample to look at while training: a continuation, or a few held-out pairs with the model's answers, or filled-in masks."""
    tokenizer = run.tokenizer
    if hasattr(run.objective, "show"):  # it knows better what to look at
        return run.objective.show(model, run)
    if hasattr(model, "encode") or hasattr(run.valid, "pairs"):
        rows = run.valid.pairs[:3] if hasattr(run.valid, "pairs") else run.objective.examples(run.valid)
        if hasattr(model, "encode"):
            prompts = [[*a, tokenizer.eos] for a, _ in rows]
        else:
            prompts = [[tokenizer.bos, *a, tokenizer.sep] for a, _ in rows]
        answers = generate(model, prompts, most=min(most, 60))
        show = lambda ids: tokenizer.decode(ids).replace("\n", " ")
        return "\n".join(f"{show(a)}  ->  {show(o)}   (wanted: {show(b)})" for (a, b), o in zip(rows, answers))
    if type(model.config).__name__ == "Encoder":
        return _filled(model, run)
    sampling = Sampling(temperature=0.8, top_k=50, seed=1)
    prompt_ids = encode(model, tokenizer, prompt)
    (row,) = generate(model, [prompt_ids], sampling, most=most, end=())
    return prompt + tokenizer.decode(row)


def _filled(model, run):
    """The first held-out row with [word] where a mask was filled rightly, and [word|truth] where not."""
    import torch

    from ..data import rng

    was = model.training
    model.eval()
    batch = run.objective.batch(run.valid.rows(run.valid.in_order()[:1]), rng(0)).to(run.device)
    with torch.inference_mode():
        out = model(**batch.inputs)
        best = out["prediction_logits" if "prediction_logits" in out else "logits"].argmax(-1).tolist()
    model.train(was)
    ids, out = batch.inputs["input_ids"][0].tolist(), []
    spots = dict(zip(batch.inputs["at"].tolist(), zip(best, batch.labels.tolist())))
    for i, t in enumerate(ids[:60]):
        if i in spots:
            guess, truth = (run.tokenizer.decode([x]).strip() for x in spots[i])
            out.append(f" [{guess}]" if guess == truth else f" [{guess}|{truth}]")
        else:
            piece = run.tokenizer.token(t)
            out.append(run.tokenizer.decode([t]) if not piece.startswith("##") else piece[2:])
            if out[-1] and not piece.startswith("##") and not out[-1][0].isspace() and piece.isalnum():
                out[-1] = " " + out[-1]
    return "".join(out).strip()
