"""qkv eval"""

from ..words import track

HELP = """
qkv eval WHAT [FILE] [key=value ...]

Loss, perplexity and bits a byte of a model on a text (a decoder), on masked tokens (an encoder, masks drawn by seed), or loss and
BLEU on pairs (an encoder-decoder; FILE and target=FILE are aligned by line, and an empty line counts). A fine-tuned run: the metrics
of its task on labelled examples, and its answers, one JSON object a line. Without a file: the run's own held-out text or examples.
BLEU is sacreBLEU's, with its signature. tokenize=NAME is what it is told to split texts by: 13a, zh, ja-mecab, char, intl, none,
flores200 ...; auto, the default, is 13a, or zh or char for references in a script that puts no space between words.

  qkv eval last
  qkv eval last other.txt
  qkv eval runs/multi30k-... data=multi30k part=test_2016_flickr beams=5
  qkv eval runs/mine en.test target=de.test
  qkv eval runs/mine en.test target=ja.test tokenize=ja-mecab

  qkv eval last test.tsv out=answers.jsonl                         a fine-tuned run on other examples
  qkv eval last part=test                                          the test part of its data set

keys: out  target  data  part  languages (en-de)  beams (0: greedy)  picture (a .png file: similarities of pairs, reconstructions, drawings, masks of a table, returns)  task (with other arguments)  penalty (1)  batches (all)  limit (pairs scored, 1000)  tokenize (auto)  field  split  errors  length
"""
KEYS = (
    "target",
    "data",
    "part",
    "languages",
    "beams",
    "penalty",
    "batches",
    "field",
    "split",
    "errors",
    "length",
    "limit",
    "tokenize",
    "out",
    "task",
    "picture",
)


def run(words, verb):
    from .main import options

    plain, given, _ = options(words, KEYS)
    if not plain or len(plain) > 2:
        raise ValueError("name a model and at most one file: qkv eval last FILE")
    for key in ("beams", "batches", "length", "limit"):
        value = given.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < (0 if key == "beams" else 1):
            raise ValueError(f"{key}={value!r}: must be a whole number of at least {0 if key == 'beams' else 1}")
    what, source = plain[0], plain[1] if len(plain) > 1 else None
    from .. import data, objectives
    from ..data import registry, text
    from ..evaluation import metrics
    from ..evaluation.loss import bits_per_byte, evaluate
    from ..training import folder, recipe
    from .common import open_model
    from .generate import quick

    if "tokenize" in given:
        metrics.bleu(given["tokenize"], [])  # refused before anything is scored
    model, tokenizer, where = open_model(what)
    cfg = model.config
    kind = type(cfg).__name__
    run_folder = folder.find(what)
    whole = recipe.resolve(recipe.load(run_folder / "recipe.toml")) if run_folder else None
    settings = whole.data if whole else data.Data()
    if whole and whole.train.task:
        return _task(model, tokenizer, whole, run_folder, source, given)
    length = min(given.get("length") or settings.length or cfg.length, cfg.length)
    reading = {k: given[k] for k in ("field", "split", "errors") if k in given}
    rows = shard = None
    if given.get("data"):
        name = given["data"]
        if name not in registry.PUBLISHED or registry.PUBLISHED[name].kind != "pairs":
            raise ValueError(
                f"data={name}: name a data set of pairs ({', '.join(n for n, p in registry.PUBLISHED.items() if p.kind == 'pairs')}), or give a FILE"
            )
        a, _, b = given.get("languages", "en-de").partition("-")
        rows = text.pairs(*(str(registry.fetch(name, f"{given.get('part', 'val')}.{x}")) for x in (a, b)))
    elif source and (given.get("target") or kind in ("EncoderDecoder", "RecurrentEncoderDecoder")):
        if not given.get("target"):
            raise ValueError("an encoder-decoder is scored on pairs: give target=FILE beside the source file")
        rows = text.pairs(source, given["target"], given.get("errors", settings.errors))
    elif source:
        docs = lambda: text.documents(source, **reading)
        shard = _shards(docs(), tokenizer)
    elif run_folder:
        corpus = data.open_corpus(settings)
        if corpus.paired:
            rows = corpus.valid
        else:
            shard = _shards(corpus.valid(), tokenizer)
    else:
        raise ValueError("name the file to score on: qkv eval FOLDER FILE")
    asked = whole.train.objective if whole and (rows is not None) == settings.paired else "auto"
    objective = objectives.make(asked, cfg, tokenizer, rows is not None, **({"mask_rate": whole.train.mask_rate} if whole else {}))
    if rows is None and "tokenize" in given:
        raise ValueError("tokenize= is how BLEU splits answers, and this is a text, not pairs; give target=FILE, too")
    if objective.module is not None or asked != objectives.usual(cfg, rows is not None):
        objective.prepare(model)
    if rows is not None:
        there, rows = len(rows), rows[: given.get("limit", 1000)]
        notes = []
        ids = data.encoded(settings, rows, tokenizer, length, objective.joined, "given", notes)
        print("".join(f"note: for the loss, {words}\n" for words in notes), end="")
        groups = data.Pairs(ids, tokens=4096).in_order(objective.fewest)
        batches = [objective.pairs(g, data.rng(0, i)) for i, g in enumerate(groups)]
    else:
        span = min(length + objective.extra, len(shard))
        if len(shard) < objective.least:
            raise ValueError(
                f"{source or 'the held-out text'} has {len(shard)} tokens; nothing can be scored of fewer than {objective.least}"
            )
        windows = data.Windows(shard, span, across=settings.across, name=source or "the held-out text")
        batches = objective.held_out(windows, 8)
    if given.get("batches"):
        import itertools

        batches = itertools.islice(batches, given["batches"])
    held = evaluate(model, objective, track(batches, "scoring"))
    if not held["scored"]:
        raise ValueError(f"there is nothing to score: {source or 'the held-out part'} is too short for what this model was trained to do")
    print(f"loss        {held['loss']:.4f} a token, of {held['scored']:,}")
    if "perplexity" in held:
        print(f"perplexity  {held['perplexity']:,.3f}")
    if held["accuracy"] is not None:
        print(f"accuracy    {100 * held['accuracy']:.2f} %")
    if shard is not None and objective.predicts_all:
        print(f"bits a byte {bits_per_byte(held['loss'], windows, tokenizer):.4f}")
    if rows is not None:
        empty = len(rows) - len(text.both(rows))
        print(f"pairs       {scored(len(rows), there)}" + (f"; {empty:,} with an empty side" if empty else ""))
        _answers(quick(model, "fp32", None), tokenizer, rows, given)


def scored(count, there):
    """How many were scored, in words."""
    return f"{count:,}" if count == there else f"{count:,} of {there:,}"


def _task(model, tokenizer, whole, run_folder, source, given):
    """Scores a fine-tuned run and writes what it says."""
    import dataclasses
    import json
    from pathlib import Path

    from .. import objectives
    from ..evaluation import metrics
    from ..evaluation.loss import ERRORS
    from ..evaluation.tasks import judge
    from ..training import assemble

    task = given.get("task") or whole.train.task
    kind, d = objectives.task_of(task), whole.data
    if "tokenize" in given and kind.metric != "bleu":
        raise ValueError(f"tokenize= is how BLEU splits answers, and task={task} is not scored by it; leave it out")
    if tokenizer.pad is None:
        tokenizer.pad = model.config.pad
    objective = objectives.make_task(task, model.config, tokenizer, d.length or model.config.length)
    if "tokenize" in given:
        objective.tokenize = given["tokenize"]
    if source:
        found = kind.read(dataclasses.replace(d, valid=source), source, given.get("part", "test"))
    elif given.get("part"):
        found = kind.read(d, d.source, given["part"])
    else:
        found = assemble.labelled(d, kind).valid
    items = objective.encode(found)
    if objective.kind == "caption":  # what its examples are taken from
        objective.encode(assemble.labelled(d, kind, whole.train.seed).train, training=True)
        objective.prepare(model)
    held, said = judge(model, objective, items, tokenizer, progress=lambda x: track(x, "answering"))
    for name, value in held.items():
        print(f"{name:11s} {value:.4f}" if name in ("loss", *ERRORS) else f"{name:11s} {100 * value:.2f} %")
    if "bleu" in held:
        wanted = [str(i["wanted"]) for i in items]
        print(f"signature   {metrics.signature(wanted, objective.tokenize)}")
    first = {}  # of each example: a long text, or an episode, has several windows
    for number, i in enumerate(items):
        first.setdefault(i["where"] if len(items) > len(found) else number, number)
    of = [items[n] for n in first.values()]
    labelled, there = sum(i["wanted"] is not None for i in of), max(len(of), len(found))
    notes = {
        f"{len(of) - labelled:,} have no label": len(of) > labelled,
        f"{there - len(of):,} were left out by the task": there > len(of),
        f"read in {len(items):,} windows": len(items) > len(of),
    }
    print("; ".join([f"examples    {scored(labelled, there)}", *(words for words, so in notes.items() if so)]))
    if unended := sum(i.get("unended", False) for i in of):
        print(f"unended     {unended:,} answers were stopped at their longest")
    out = Path(given.get("out") or run_folder / "predictions.jsonl")
    with open(out, "w", encoding="utf-8") as f:
        for n in first.values():
            i, plain = items[n], lambda x: x.tolist() if hasattr(x, "tolist") else x
            more = {key: True for key in ("cut", "unended") if i.get(key)}
            row = {"where": i["where"], "said": plain(said[n]), "wanted": plain(i["wanted"])} | more
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(first)} answers are in {out}")
    if given.get("picture"):
        if not hasattr(objective, "picture"):
            can = ", ".join(n for n, k in objectives.TASKS.items() if hasattr(k, "picture"))
            raise ValueError(f"picture=: there is nothing to draw of task={task}; there is of {can}")
        print(f"picture: {objective.picture(model, items, given['picture'])}")


def _shards(texts, tokenizer):
    import numpy as np

    from ..data.shards import Shards

    ids, ends, nbytes = [], [], 0
    for t in texts:
        ids += tokenizer.encode(t) + ([] if tokenizer.eos is None else [tokenizer.eos])
        ends.append(len(ids))
        nbytes += len(t.encode())
    return Shards(np.array(ids, dtype=np.int64), np.array(ends, dtype=np.int64), nbytes)


def _answers(model, tokenizer, rows, given):
    """Answers every source; prints how many answers are exact, and where sacrebleu is installed BLEU and chrF of all."""
    from ..evaluation import metrics
    from ..evaluation.tasks import written

    whole, room = tokenizer.encode_all([a for a, _ in rows]), model.config.length - 2  # with what stands around them
    sources = [ids[:room] for ids in whole]
    order = sorted(range(len(rows)), key=lambda i: len(sources[i]))
    answers, unended = [""] * len(rows), 0
    search = {"beams": given.get("beams", 0), "penalty": given.get("penalty", 1.0)}
    for i in track(range(0, len(order), 32), "answering"):
        part = order[i : i + 32]
        most = min(model.config.length, 2 * max(len(sources[j]) for j in part) + 20)
        told = written(model, tokenizer, [sources[j] for j in part], most, **search)
        for j, (answer, stopped) in zip(part, told):
            answers[j] = answer
            unended += stopped
    wanted = [b for _, b in rows]
    print(f"exact       {sum(a == b for a, b in zip(answers, wanted))} of {len(rows)}")
    if cut := sum(len(ids) > room for ids in whole):
        print(f"cut         {cut:,} sources were shortened to the {room} tokens that the model reads of them")
    if unended:
        print(f"unended     {unended:,} answers were stopped at their longest, twice their source")
    try:
        held = metrics.generated(wanted, answers, given.get("tokenize", "auto"))
    except ValueError as e:
        print(f"BLEU        {e}")
        return
    print(f"sacreBLEU   {100 * held['bleu']:.2f}")
    print(f"signature   {metrics.signature(wanted, given.get('tokenize', 'auto'))}")
    print(f"chrF        {100 * held['chrf']:.2f}")
