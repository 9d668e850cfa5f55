"""qkv eval"""

from ..words import track

HELP = """
qkv eval WHAT [FILE] [key=value ...]

Loss, perplexity and bits a byte of a model on a text (a decoder), on masked tokens (an encoder, masks drawn by seed), or loss and
BLEU on pairs (an encoder-decoder; FILE and target=FILE are aligned by line). A fine-tuned run: the metrics of its task on labelled
examples, and its answers, one JSON object a line. Without a file: the run's own held-out text or examples.

  qkv eval last
  qkv eval last other.txt
  qkv eval runs/multi30k-... data=multi30k part=test_2016_flickr beams=5
  qkv eval runs/mine en.test target=de.test

  qkv eval last test.tsv out=answers.jsonl                         a fine-tuned run on other examples
  qkv eval last part=test                                          the test part of its data set

keys: out  target  data  part  languages (en-de)  beams (0: greedy)  picture (a .png file: similarities of pairs, reconstructions, drawings, masks of a table, returns)  task (with other arguments)  penalty (1)  batches (all)  limit (pairs answered, 1000)  field  split  errors  length
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
    from ..evaluation.loss import evaluate
    from ..training import folder, recipe
    from .common import open_model
    from .generate import quick

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
        rows = text.pairs(source, given["target"])
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
    if objective.module is not None or asked != objectives.usual(cfg, rows is not None):
        objective.prepare(model)
    if rows is not None:
        rows = rows[: given.get("limit", 1000)]
        ids = [tuple(zip_ids) for zip_ids in zip(*(tokenizer.encode_all([r[i] for r in rows]) for i in (0, 1)))]
        groups = data.Pairs(ids, tokens=4096).in_order()
        batches = [objective.pairs(g, data.rng(0, i)) for i, g in enumerate(groups)]
    else:
        span = min(length + objective.extra, len(shard))
        windows = data.Windows(shard, span, name=source or "the held-out text")
        starts = windows.in_order()
        batches = (objective.batch(windows.rows(starts[i : i + 8]), data.rng(0, i)) for i in range(0, len(starts), 8))
    if given.get("batches"):
        import itertools

        batches = itertools.islice(batches, given["batches"])
    held = evaluate(model, objective, track(batches, "scoring"))
    print(f"loss        {held['loss']:.4f} a token")
    if "perplexity" in held:
        print(f"perplexity  {held['perplexity']:,.3f}")
    if held["accuracy"] is not None:
        print(f"accuracy    {100 * held['accuracy']:.2f} %")
    if shard is not None and kind in ("Decoder", "Recurrent"):
        import math

        print(f"bits a byte {held['loss'] / math.log(2) * len(shard) / max(1, shard.nbytes):.4f}")
    if rows is not None:
        _answers(quick(model, "fp32", None), tokenizer, rows, given)


def _task(model, tokenizer, whole, run_folder, source, given):
    """Scores a fine-tuned run and writes what it says."""
    import dataclasses
    import json
    from pathlib import Path

    from .. import objectives
    from ..evaluation.loss import ERRORS
    from ..evaluation.tasks import judge
    from ..training import assemble

    task = given.get("task") or whole.train.task
    kind, d = objectives.task_of(task), whole.data
    if tokenizer.pad is None:
        tokenizer.pad = model.config.pad
    objective = objectives.make_task(task, model.config, tokenizer, d.length or model.config.length)
    if source:
        found = kind.read(dataclasses.replace(d, source=source), source, given.get("part", "test"))
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
    out = Path(given.get("out") or run_folder / "predictions.jsonl")
    seen = set()
    with open(out, "w", encoding="utf-8") as f:
        for i, s in zip(items, said):
            if i["where"] not in seen:  # a long text has several windows
                seen.add(i["where"])
                plain = lambda x: x.tolist() if hasattr(x, "tolist") else x
                f.write(json.dumps({"where": i["where"], "said": plain(s), "wanted": plain(i["wanted"])}, ensure_ascii=False) + "\n")
    print(f"{len(seen)} answers are in {out}")
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
    """Writes an answer to every source; prints how many are exact, and BLEU where sacrebleu is installed."""
    from ..generation import complete

    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    answers = [""] * len(rows)
    for i in track(range(0, len(order), 32), "answering"):
        part = order[i : i + 32]
        most = min(model.config.length, 2 * max(len(tokenizer.encode(rows[j][0])) for j in part) + 20)
        prompts = [rows[j][0] for j in part]
        for j, a in zip(
            part, complete(model, tokenizer, prompts, most=most, beams=given.get("beams", 0), penalty=given.get("penalty", 1.0))
        ):
            answers[j] = a.strip()
    exact = sum(a == b for a, (_, b) in zip(answers, rows))
    print(f"exact       {exact} of {len(rows)}")
    try:
        import sacrebleu
    except ImportError:
        print("BLEU        needs sacrebleu: pip install 'qkv[mt]'")
        return
    print(f"sacreBLEU   {sacrebleu.corpus_bleu(answers, [[b for _, b in rows]]).score:.2f}")
