"""Every metric against another library, or its definition written a second time, on generated inputs; every
held-out loss against one item at a time."""

import functools
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv import models, objectives
from qkv.cli.main import main
from qkv.data import Data, DataError, text
from qkv.data import tokenizer as tokenizers
from qkv.data.examples import Example
from qkv.evaluation import metrics, tasks
from qkv.evaluation.tasks import judge
from qkv.objectives import ranks


def several(of, least=1, most=8):
    return st.lists(of, min_size=least, max_size=most)


def couples(of, **size):
    return several(st.tuples(of, of), **size)


def columns(rows):
    return tuple(map(list, zip(*rows)))


WORDS = st.sampled_from(("the", "cat", "sat", "a", "1,000", "don't", "„so“", "猫", "座る", "แมว", "naïve"))
GAPS, ENDS = st.sampled_from((" ", "  ", "")), st.sampled_from(("", ".", " ", " !"))
SENTENCE = st.builds(lambda words, gap, end: gap.join(words) + end, several(WORDS, 0), GAPS, ENDS)


@settings(max_examples=60, deadline=None)
@given(couples(SENTENCE), st.sampled_from(("13a", "zh", "char", "intl", None)))
def test_bleu_and_chrf_are_those_of_sacrebleu(rows, tokenize):
    sacrebleu = pytest.importorskip("sacrebleu")
    truth, said = columns(rows)
    got = metrics.generated(truth, said, tokenize)
    assert got["bleu"] == sacrebleu.corpus_bleu(said, [truth], tokenize=tokenize or "none").score / 100
    assert got["chrf"] == sacrebleu.corpus_chrf(said, [truth]).score / 100
    assert got["exact"] == np.mean([a == b for a, b in rows])


WRITTEN = {
    "13a": (" ", ("the", "猫", "runs", "away", "quickly")),
    "zh": ("", ("我们", "今天", "去", "北京", "X", "3")),
    "char": ("", ("私は", "東京", "へ", "行きます", "カメラ")),
}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(WRITTEN)))
def test_what_is_written_without_spaces_is_cut_into_characters(data, name):
    between, words = WRITTEN[name]
    sentences = data.draw(several(several(st.sampled_from(words), 4)))
    truth = [between.join([*some, *words[:2]]) for some in sentences]
    assert metrics.tokenize_for(truth) == name
    assert metrics.generated(truth, truth)["bleu"] == pytest.approx(1)
    assert f"tok:{name}|" in metrics.signature(truth)
    assert ("chosen" in metrics.signature(truth)) == (name != "13a")
    assert "chosen" not in metrics.signature(truth, name)


def test_a_script_decides_not_its_words():
    for line in ("ผมกินข้าวที่บ้าน วันนี้", "ကျွန်တော်နေကောင်းပါတယ်"):
        assert metrics.tokenize_for([line]) == "char"
    for line in ("나는 오늘 학교에 갔다", "", "我们 今天 去 北京"):  # the last was cut into words by whoever wrote it
        assert metrics.tokenize_for([line]) == "13a"
    with pytest.raises(ValueError, match=r"tokenize=ja_mecab: is not one of auto, .*Did you mean 'ja-mecab'"):
        metrics.bleu("ja_mecab", [])


@settings(max_examples=80, deadline=None)
@given(couples(st.sampled_from("abcde"), most=20))
def test_classes_are_scored_as_by_definition_and_by_scikit_learn(rows):
    from sklearn import metrics as m

    truth, said = columns(rows)
    got = metrics.classification(truth, said)
    assert got["accuracy"] == m.accuracy_score(truth, said)
    assert got["f1"] == m.f1_score(truth, said, average="macro", zero_division=0)
    names = sorted({*truth, *said})  # a label that never occurs takes nothing away
    table = np.array([[sum(r == (a, b) for r in rows) for b in names] for a in names], dtype=float)
    f1 = [2 * table[i, i] / (table[i].sum() + table[:, i].sum()) for i in range(len(names))]
    assert got["f1"] == pytest.approx(np.mean(f1))
    a, b = (np.array([[x == n for n in names] for x in side], dtype=float) for side in (truth, said))
    covariance = lambda x, y: ((x - x.mean(0)) * (y - y.mean(0))).sum()  # Gorodkin (2004)
    spread = math.sqrt(covariance(a, a) * covariance(b, b))
    assert got["mcc"] == pytest.approx(covariance(a, b) / spread if spread else 0.0)


TAGS = st.sampled_from(("O", "B-per", "I-per", "B-loc", "I-loc"))
TAGGED = st.integers(1, 6).flatmap(lambda n: couples(several(TAGS, n, n), most=4))


def begun(tags):
    """The same entities, each of which begins with B-."""
    alone = [i == 0 or tags[i - 1][2:] != t[2:] for i, t in enumerate(tags)]
    return [f"B-{t[2:]}" if t[:2] == "I-" and first else t for t, first in zip(tags, alone)]


@settings(max_examples=80, deadline=None)
@given(TAGGED)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of nothing found, or nothing wanted
def test_entities_are_those_of_conlleval(rows):
    """seqeval's own mode is conlleval's, where an I- may begin an entity; its strict one agrees where each
    begins with B-."""
    from seqeval import metrics as m
    from seqeval.scheme import IOB2

    truth, said = columns(rows)
    got = metrics.entity_f1(truth, said)
    strict = [[begun(tags) for tags in side] for side in (truth, said)]
    for name, score in (("f1", m.f1_score), ("precision", m.precision_score), ("recall", m.recall_score)):
        assert got[name] == pytest.approx(score(truth, said, zero_division=0)), name
        assert got[name] == pytest.approx(score(*strict, mode="strict", scheme=IOB2, zero_division=0)), name


def squad_words(answer):
    """SQuAD's normalisation by hand: runs of word characters, of which the articles go."""
    kept = "".join(c for c in answer.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    runs = ["".join(run) for _, run in itertools.groupby(kept, lambda c: c.isalnum() or c == "_")]
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def squad_f1(a, b):
    """The harmonic mean of precision and recall of words; 1 where both have none."""
    if not a or not b:
        return float(a == b)
    common = sum(min(a.count(w), b.count(w)) for w in set(a))
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall) if common else 0.0


PIECES = ("The", "a", "an", "A.", "ANTHEM", "it's", "—", "“Rome”", "...", "naïve", "¿", "\u00a0", "İ", "5")
ANSWER = st.builds("".join, several(st.one_of(st.sampled_from(PIECES), st.just(" ")), 0))


@settings(max_examples=100, deadline=None)
@given(several(st.tuples(several(ANSWER, 0, 3), ANSWER)))
def test_answers_are_scored_by_the_formula_of_squad(rows):
    truth, said = columns(rows)
    right = [[w for w in map(squad_words, some) if w] or [[]] for some in truth]
    mine = [squad_words(s) for s in said]
    got = metrics.answers(truth, said)
    assert got["exact"] == pytest.approx(np.mean([a in some for a, some in zip(mine, right)]))
    best = [max(squad_f1(a, w) for w in some) for a, some in zip(mine, right)]
    assert got["f1"] == pytest.approx(np.mean(best))


def distance(a, b):
    """The definition: the last ones are equal, or one is put in, left out or exchanged."""

    @functools.cache
    def of(i, j):
        if i == 0 or j == 0:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return of(len(a), len(b))


@settings(max_examples=100, deadline=None)
@given(couples(st.text("ab é", max_size=9), most=4))
def test_edits_are_the_fewest(rows):
    truth, said = columns(rows)
    got = metrics.transcripts(truth, said)
    words, letters = sum(len(t.split()) for t in truth), sum(map(len, truth))
    assert got["right"] == np.mean([a == b for a, b in rows])
    assert got["wer"] == sum(distance(a.split(), b.split()) for a, b in rows) / max(1, words)
    assert got["cer"] == sum(distance(a, b) for a, b in rows) / max(1, letters)
    assert all(metrics.edits(a, b) == metrics.edits(b, a) == distance(a, b) for a, b in rows)


SCORED = st.integers(2, 12).flatmap(lambda n: several(several(st.integers(-2, 3), n, n)))


@settings(max_examples=80, deadline=None)
@given(SCORED, st.data(), st.integers(1, 12))
def test_ranks_are_places_in_a_sorted_list(rows, data, k):
    from sklearn.metrics import ndcg_score

    V = len(rows[0])
    wanted = [data.draw(st.integers(0, V - 1)) for _ in rows]
    orders = [sorted(range(V), key=lambda v, row=row: (-row[v], v)) for row in rows]
    rank = ranks.places(torch.tensor(rows, dtype=torch.float32), torch.tensor(wanted)).tolist()
    assert rank == [order.index(w) for order, w in zip(orders, wanted)]
    got = ranks.ranking(rank, k)
    assert got[f"hr{k}"] == np.mean([w in order[:k] for order, w in zip(orders, wanted)])
    apart = np.array([[-order.index(v) for v in range(V)] for order in orders], dtype=float)  # no two alike
    assert got[f"ndcg{k}"] == pytest.approx(ndcg_score(np.eye(V)[wanted], apart, k=k))


def test_a_model_that_tells_nothing_apart_is_not_right():
    flat, broken = torch.zeros(5, 5), torch.full((5, 5), torch.nan)
    assert ranks.places(flat, torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert ranks.places(broken, torch.arange(5)).tolist() == [5] * 5
    broken[:, 0] = 1.0
    assert ranks.places(broken, torch.zeros(5, dtype=torch.long)).tolist() == [4] * 5


ITEM = st.integers(0, 7)


@settings(max_examples=40, deadline=None)
@given(several(st.integers(-1, 2), 8, 8), several(ITEM, most=5), ITEM, st.integers(1, 8))
def test_items_that_were_taken_are_not_recommended(scores, taken, wanted, top):
    names = [f"i{n}" for n in range(8)]
    tokenizer = tokenizers.train("items", [" ".join(names)], None)
    cfg = models.preset("gru4rec-nano", vocab=len(tokenizer), unsaid=1)
    task = objectives.make_task("recommend", cfg, tokenizer, 10)
    task.encode([Example(" ".join(names)), Example("i5 i2"), Example("i5")], training=True)
    items = task.encode([Example(" ".join(names[t] for t in taken), label=names[wanted])])

    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask, at):
            row = torch.full((len(tokenizer) - 1,), 9.0)  # of the padding
            for name, score in zip(names, scores):
                row[tokenizer.encode(name)[0]] = score
            return {"logits": row[None].repeat(len(at), 1)}

    ((best, rank, popular),) = task.predict(Fixed(), items, top=top)
    may = [n for n in range(8) if n == wanted or n not in taken]
    order = sorted(may, key=lambda n: (-scores[n], n))
    assert best == [names[n] for n in order[:top]] and rank == order.index(wanted)
    often = {5: 3, 2: 2}
    assert popular == sorted(may, key=lambda n: (-often.get(n, 1), n)).index(wanted)


VECTOR = several(st.integers(-2, 2), 3, 3)


@settings(max_examples=40, deadline=None)
@given(several(st.tuples(VECTOR, VECTOR, st.sampled_from("abcdefgh"))))
def test_retrieval_is_that_of_a_sorted_list(rows):
    kind = objectives.TASKS["match"]
    vectors = [(torch.tensor(image).float(), torch.tensor(words).float()) for image, words, _ in rows]
    held, _ = kind.__new__(kind).ranked([{"wanted": name} for *_, name in rows], vectors)
    for way, left, right in (("at", 1, 0), ("back", 0, 1)):
        places = []
        for n, row in enumerate(rows):  # others of the same text are no wrong answers
            others = [m for m in range(len(rows)) if m == n or rows[m][2] != row[2]]
            order = sorted(others, key=lambda m, row=row: (-np.dot(row[left], rows[m][right]), m))
            places.append(order.index(n))
        for k in (1, 5):
            assert held[f"{way}{k}"] == pytest.approx(np.mean([p < k for p in places]))


SERIES = st.integers(2, 5).flatmap(lambda n: couples(several(st.floats(-3, 3, width=32), n, n)).map(columns))


@settings(max_examples=40, deadline=None)
@given(SERIES)
def test_forecasts_are_scored_as_by_scikit_learn(both):
    from sklearn import metrics as m

    cfg = models.preset("linear-forecaster", context=12, horizon=4, values=1, said=1)
    truth, said = (torch.tensor(side)[..., None] for side in both)
    got = objectives.TASKS["forecast"](cfg).scores([{"wanted": t} for t in truth], list(said))
    truth, said = truth.flatten().double(), said.flatten().double()
    assert got["mse"] == pytest.approx(m.mean_squared_error(truth, said), abs=1e-6, rel=1e-5)
    assert got["mae"] == pytest.approx(m.mean_absolute_error(truth, said), abs=1e-6, rel=1e-5)
    if truth.var() > 1e-3:
        assert got["explained"] == pytest.approx(m.r2_score(truth, said), abs=1e-5, rel=1e-5)


def played(model, shape, seed, target):
    """What is earned in one episode, by a list of its steps, cut to the last four, which the model reads."""
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("CartPole-v1")
    state, steps, left, total, done = env.reset(seed=seed)[0], [], target, 0.0, False
    while not done:
        seen = (state - np.array(shape["mean"])) / np.array(shape["deviation"])
        steps.append([seen, np.zeros(2), [left / shape["scale"]], len(steps)])
        states, actions, returns, times = (torch.tensor(np.array(x))[None] for x in columns(steps[-4:]))
        with torch.no_grad():
            out = model(states.float(), actions.float(), returns.float(), times)["action_preds"]
        action = int(out[0, -1].argmax())
        steps[-1][1] = np.eye(2)[action]
        state, reward, ended, cut, _ = env.step(action)
        left, total, done = left - reward, total + reward, ended or cut
    env.close()
    return total


def test_returns_are_those_of_one_episode_after_another():
    kind = objectives.TASKS["decide"]
    cfg = Data(source="CartPole-v1", env="CartPole-v1", policy="random", episodes=4)
    found = kind.read(cfg, cfg.source, "train")
    shape = kind.shape(found)
    small = {"length": 12, "dim": 16, "layers": 1, "heads": 2, "dropout": 0.0, "attn_dropout": 0.0}
    model = models.build(models.preset("decision-nano", **small | shape))
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.dim() > 1):  # so that it acts by what it sees
            p.add_(0.3 * torch.randn_like(p))
    task, model = kind(model.config, episodes=3, target=30.0), model.eval()
    earned = [played(model, shape, task.seed + n, 30.0) for n in range(3)]
    assert len(set(earned)) > 1
    items = task.encode(found)
    held, said = task.judge_all(model, items)
    want = {"return": np.mean(earned), "spread": np.std(earned), "least": min(earned)}
    assert {name: held[name] for name in want} == pytest.approx(want)
    assert len(said) == len(items)  # a return is of no window of the data
    with torch.no_grad():
        alone = [task.pairs([i], None) for i in items]
        loss, right = zip(*(task.wrong(model(**b.inputs), b) for b in alone))
    assert held["loss"] == pytest.approx(float(torch.cat(loss).mean()), rel=1e-5)
    assert held["right"] == pytest.approx(float(torch.cat(right).mean()))


# --- the held-out loss: every item once, whatever the batches
LINES = ("the cat sat", "a dog ran away from the cat", "no", "the end of the day is near", "cat", "day", "do")
ROWS = (1, 2, 3, 6, 7, 64)  # of seven items: all boundaries of a batch, and a last one of one


def made(preset, **fields):
    """(a tokenizer of these lines, a model that is not quite what it is at first)"""
    tokenizer = tokenizers.train("wordpiece", LINES * 5, 120)
    special = {"pad": tokenizer.pad, "bos": tokenizer.bos, "eos": tokenizer.eos, "length": 32}
    if isinstance(models.preset(preset), models.EncoderDecoder):
        special["start"] = tokenizer.bos
    model = models.build(models.preset(preset, vocab=len(tokenizer), **special | fields))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return tokenizer, model.double().eval()


def rows_of(texts, pairs=(None,) * 7, labels=(None,) * 7, more=({},) * 7):
    return [Example(*row[:3], f"row {n}", row[3]) for n, row in enumerate(zip(texts, pairs, labels, more))]


def lost(logits, label):
    """The cross-entropy of one label."""
    return F.cross_entropy(logits.reshape(1, -1), torch.tensor([label])).item()


def agree(model, task, items, tokenizer, want):
    """In batches of any size the loss is the mean of what each labelled item loses by itself, and answers are
    the same."""
    total, count = map(sum, zip(*want))
    first = None
    for rows in ROWS:
        held, said = judge(model.train(), task, items, tokenizer, rows=rows)
        first = first or (held, said)
        assert held["loss"] == pytest.approx(total / count, rel=1e-5), rows
        assert said == first[1] and held == pytest.approx(first[0], rel=1e-5), rows
        assert model.training  # the mode is kept
    model.eval()
    return first


@pytest.mark.parametrize("preset", ("bert-nano", "gpt1-nano", "bart-nano", "lstm-nano"))
def test_the_loss_of_classes(preset):
    tokenizer, model = made(preset, output="sequence", labels=3, label_names=("x", "y", "z"))
    task = objectives.make_task("classification", model.config, tokenizer, 32)
    labels = ("x", "y", None, "x", "z", "x", "y")
    items = task.encode(rows_of(LINES, labels=labels))
    logits = [model(input_ids=torch.tensor([i["ids"]]))["logits"] for i in items]
    want = [(lost(scores, i["label"]), 1) for scores, i in zip(logits, items) if i["label"] is not None]
    held, said = agree(model, task, items, tokenizer, want)
    assert held["accuracy"] == pytest.approx(np.mean([s == w for s, w in zip(said, labels) if w is not None]))
    assert said == ["xyz"[int(scores.argmax())] for scores in logits]  # what has no label is answered
    for i in items:
        i["wanted"] = i["label"] = None
    assert judge(model, task, items, tokenizer) == ({}, said)
    with pytest.raises(ValueError, match="there are no examples to score"):
        judge(model, task, [], tokenizer)


def test_the_loss_of_tags():
    names = ("O", "B-x", "I-x")
    tokenizer, model = made("bert-nano", output="tokens", labels=3, label_names=names)
    task = objectives.make_task("tagging", model.config, tokenizer, 32)
    words = [line.split() for line in LINES]
    tags = [None if n == 3 else [names[k % 3] for k in range(len(w))] for n, w in enumerate(words)]
    items, want = task.encode(rows_of(words, labels=tags)), []
    for i, some in zip(items, words):
        logits, place, each = model(input_ids=torch.tensor([i["ids"]]))["logits"][0], 1, []
        for word, tag in zip(some, i["wanted"] or ()):
            each.append(lost(logits[place], names.index(tag)))
            place += len(tokenizer.encode(word))
        want.append((sum(each), len(each)))
    agree(model, task, items, tokenizer, want)


def test_the_loss_of_answers_is_that_of_windows():
    tokenizer, model = made("bert-nano", output="span")
    task = objectives.make_task("answers(stride=4)", model.config, tokenizer, 24)
    context, wanted = " ".join(LINES), ("dog ran", "no", "", "end of the day")
    answers = [[(context.index(w), w)] if w else [] for w in wanted]
    items, want = task.encode(rows_of(["who sat"] * 4, [context] * 4, answers)), []
    assert len(items) == 2 * len(wanted)  # windows
    for i in items:
        out = model(input_ids=torch.tensor([i["ids"]]), token_type_ids=torch.tensor([i["types"]]))
        ends = [lost(out[name], label) for name, label in zip(("start_logits", "end_logits"), i["label"])]
        want.append((sum(ends) / 2, 1))
    held, said = agree(model, task, items, tokenizer, want)
    once = {i["question"]: s for i, s in zip(items, said)}
    right = [squad_words(once[n]) == squad_words(w) for n, w in enumerate(wanted)]
    assert held["exact"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("preset, output", (("bert-nano", "choice"), ("gpt1-nano", "double")))
def test_the_loss_of_choices(preset, output):
    tokenizer, model = made(preset, output=output)
    task = objectives.make_task("choice", model.config, tokenizer, 32)
    labels = ("0", "1", "1", None, "0", "1", "0")
    choices = [{"choices": [LINES[n - 1], LINES[n - 2]]} for n in range(7)]
    items, want, right = task.encode(rows_of(LINES, labels=labels, more=choices)), [], []
    for i, label in zip(items, labels):
        scores = []
        for ids, types in i["rows"]:
            more = {"token_type_ids": [[types]]} if output == "choice" else {"mc_token_ids": [[len(ids) - 1]]}
            out = model(input_ids=torch.tensor([[ids]]), **{k: torch.tensor(v) for k, v in more.items()})
            scores.append(out["logits" if output == "choice" else "mc_logits"].flatten())
        if label is not None:
            want.append((lost(torch.cat(scores), int(label)), 1))
            right.append(int(torch.cat(scores).argmax()) == int(label))
    held, _ = agree(model, task, items, tokenizer, want)
    assert held["accuracy"] == pytest.approx(np.mean(right))


def asked(model, tokenizer, item):
    """(what stands before an answer, the scores of the token after a row that begins so)"""
    if not hasattr(model, "encode"):
        ask = lambda row: model(input_ids=torch.tensor([row]))["logits"][0]
        return [tokenizer.bos, *item["ids"], tokenizer.sep], ask
    source = torch.tensor([[*item["ids"], tokenizer.eos]])
    ask = lambda row: model(input_ids=source, decoder_input_ids=torch.tensor([row]))["logits"][0]
    return [model.config.start], ask


@pytest.mark.parametrize("preset", ("t5-nano", "lstm-seq2seq-nano", "gpt-nano"))
def test_the_loss_and_the_answers_of_texts(preset):
    """A target is scored token by token with its end; an answer and its end do not depend on its batch."""
    tokenizer, model = made(preset, length=20)  # which leaves a decoder less room the longer a source is
    task = objectives.make_task("text", model.config, tokenizer, 20)
    items = task.encode(rows_of(LINES, LINES[::-1]))
    longest, want, answers = 2 * max(len(i["target"]) for i in items) + 10, [], []
    for i in items:
        before, ask = asked(model, tokenizer, i)
        target = [*i["target"], tokenizer.eos]
        logits = ask([*before, *target[:-1]])[len(before) - 1 :]
        want.append((sum(map(lost, logits, target)), len(target)))
        said, room = [], min(longest, model.config.length - len(before) + 1)
        while len(said) < room and (best := int(ask([*before, *said])[-1].argmax())) != tokenizer.eos:
            said.append(best)
        answers.append((tokenizer.decode(said), len(said) == room))
    _, said = agree(model, task, items, tokenizer, want)
    assert [(s, i["unended"]) for s, i in zip(said, items)] == answers


def test_a_source_that_was_cut_is_answered_as_it_was_read():
    tokenizer, model = made("bart-nano")
    long = " ".join(LINES * 2)
    task = objectives.make_task("text(cut=true)", model.config, tokenizer, 32)
    items = task.encode([Example(long, "no", None, "row 1", {})])
    assert len(tokenizer.encode(long)) > 32  # more than the model has positions for
    short = task.encode([Example(tokenizer.decode(items[0]["ids"]), "no", None, "row 1", {})])
    assert short[0]["ids"] == items[0]["ids"]
    assert judge(model, task, items, tokenizer)[1] == judge(model, task, short, tokenizer)[1]


@pytest.mark.parametrize("rows", (1, 4, 64))
def test_the_loss_of_images_does_not_depend_on_the_batch(rows):
    """Hidden patches are those of an image, and pairs are told apart among all; neither needs a label."""
    pixels = torch.randint(0, 256, (5, 16, 16, 1), dtype=torch.uint8).numpy()
    seen = {"image": 16, "patch": 4, "channels": 1}
    model = models.build(models.preset("mae-nano", **seen)).eval()
    task = objectives.make_task("reconstruct", model.config, tokenizers.NoTokens(), 16)
    items = task.encode(rows_of(pixels))
    with torch.no_grad():
        alone = [float(task.loss(model, task.pairs([i], None)).value) for i in items]
    assert judge(model, task, items, None, rows=rows)[0] == pytest.approx({"loss": np.mean(alone)}, rel=1e-5)

    tokenizer, cfg = tokenizers.train("char", ["abcdef"]), models.preset("clip-nano")
    special = {"vocab": len(tokenizer), "pad": tokenizer.pad, "bos": tokenizer.bos, "eos": tokenizer.eos}
    parts = {"words": models.replace(cfg.words, **special), "picture": models.replace(cfg.picture, **seen)}
    model = models.build(models.replace(cfg, **parts)).eval()
    task = objectives.make_task("match", model.config, tokenizer, 16)
    items = task.encode(rows_of(pixels, "abcde"))
    with torch.no_grad():
        whole = model(**task.pairs(items, None).inputs)["logits_per_image"]
    want = sum(lost(x[n], n) for x in (whole, whole.T) for n in range(5)) / 10
    assert judge(model, task, items, tokenizer, rows=rows)[0]["loss"] == pytest.approx(want, rel=1e-4)


# --- what `qkv eval` says
TINY = ("dim=32", "heads=2", "layers=1", "length=24", "hidden=32")
SMALL = (*TINY, "steps=1", "warmup=1", "threads=1", "sample_tokens=2")


def qkv(*words):
    return main([str(w) for w in words])


def said_of(capsys, *words):
    """{first word: the rest} of the lines that a verb prints."""
    capsys.readouterr()
    assert qkv(*words) == 0
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@settings(max_examples=100, deadline=None)
@given(couples(st.text("a \t\u3000b", max_size=4), most=6))
def test_pairs_are_the_lines_as_they_are(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("pairs")
    a, b = (write(folder / name, side) for name, side in zip("ab", columns(rows)))
    full = [row for row in rows if not any(side == "" or side.isspace() for side in row)]
    assert text.both(rows) == full
    if full:
        assert text.pairs(a, b) == rows
        return
    with pytest.raises(DataError, match="hold no pairs"):
        text.pairs(a, b)


def test_bleu_of_files_is_that_of_their_raw_lines(tmp_path, monkeypatch, capsys):
    sacrebleu = pytest.importorskip("sacrebleu")
    source = ["我们去", "ab", "", "cd ", "我们今天去北京 "]
    target = ["我们今天去北京", "北京今天 ", "今天我们", "", " 我们今天去"]
    answers = ["我们今天去北京", "北京今天", "", "今天", " 我们今天去"]
    s, t = write(tmp_path / "s", source), write(tmp_path / "t", target)
    assert qkv("train", "transformer-nano", f"data={s}", f"target={t}", "tokenizer=char", *SMALL) == 0
    plain = tasks.written

    def written(model, tokenizer, sources, most, **search):
        assert len(plain(model, tokenizer, sources, most, **search)) == len(sources)
        by = {tuple(tokenizer.encode(s)): a for s, a in zip(source, answers)}
        return [(by[tuple(ids)], not ids) for ids in sources]

    monkeypatch.setattr(tasks, "written", written)
    ask = ("eval", "last", s, f"target={t}")
    for key, name in (((), "zh"), (("tokenize=char",), "char"), (("tokenize=none",), "none")):
        out = said_of(capsys, *ask, *key)
        assert out["sacreBLEU"] == f"{sacrebleu.corpus_bleu(answers, [target], tokenize=name).score:.2f}"
        assert out["chrF"] == f"{sacrebleu.corpus_chrf(answers, [target]).score:.2f}"
        assert f"tok:{name}|" in out["signature"]
        assert ("tokenize=13a is the usual" in out["signature"]) == (not key)
        assert out["exact"] == "2 of 5" and out["pairs"] == "5; 2 with an empty side"
        assert out["unended"].startswith("1 answers")
        assert out["loss"].endswith(f"a token, of {sum(map(len, target)) + 5}")
    assert said_of(capsys, *ask, "limit=2")["pairs"] == "2 of 5"
    assert qkv(*ask, "tokenize=ja") == 2
    assert "tokenize=ja: is not one of auto, none, zh, 13a" in capsys.readouterr().err


def test_pairs_beyond_the_model_are_answered_as_far_as_it_reads(tmp_path, capsys):
    s, t = write(tmp_path / "s", ["ab", "cd"]), write(tmp_path / "t", ["ab", "cd"])
    assert qkv("train", "transformer-nano", f"data={s}", f"target={t}", "tokenizer=char", *SMALL) == 0
    for path in (s, t):
        path.write_text(path.read_text() + 40 * "a" + "\n")
    out = said_of(capsys, "eval", "last", s, f"target={t}")
    assert out["note:"].startswith("for the loss, 1 of 3 given pairs are too long for the model's 24")
    assert out["loss"].endswith("a token, of 6") and out["pairs"] == "3" and out["exact"].endswith("of 3")
    assert out["cut"].startswith("1 sources were shortened to the 22 tokens")


@pytest.mark.parametrize("preset", ("transformer-nano", "gpt-nano"))
def test_pairs_are_answered_as_they_were_learnt(tmp_path, preset, capsys):
    """A decoder reads the separator behind a source, as in training."""
    s, t = write(tmp_path / "s", "abcd" * 30), write(tmp_path / "t", "bcda" * 30)
    more = ("layers=2", "steps=150", "warmup=10", "lr=3e-3", "tokens=256", "dropout=0")
    assert qkv("train", preset, f"data={s}", f"target={t}", "tokenizer=char", *SMALL, *more) == 0
    assert said_of(capsys, "eval", "last", s, f"target={t}")["exact"] == "120 of 120"


def test_a_task_says_how_many_it_scored(tmp_path, capsys):
    row = lambda n, label: json.dumps({"text": LINES[n], "label": label})
    train = write(tmp_path / "train.jsonl", [row(n, "xy"[n % 2]) for n in range(6)])
    some = write(tmp_path / "some.jsonl", [*(row(n, "xy"[n % 2]) for n in range(3)), row(3, None)])
    words = ("task=classification", f"data={train}", f"valid={train}", "tokenizer=char")
    assert qkv("train", "bert-nano", *words, *SMALL, "length=40") == 0
    out = said_of(capsys, "eval", "last", some, f"out={tmp_path / 'o.jsonl'}")
    assert out["examples"] == "3 of 4; 1 have no label" and {"loss", "accuracy", "f1"} <= set(out)
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 4
    assert qkv("eval", "last", "tokenize=zh") == 2
    assert "task=classification is not scored by it" in capsys.readouterr().err


def test_a_task_of_texts_prints_its_signature_and_what_was_stopped(tmp_path, capsys):
    rows = [{"source": "ab", "target": "我们今天去北京"}, {"source": "cd", "target": "今天我们去"}] * 4
    data = write(tmp_path / "t.jsonl", map(json.dumps, rows))
    words = ("task=text", f"data={data}", f"valid={data}", "text=source", "pair=target", "tokenizer=char")
    assert qkv("train", "t5-nano", *words, *SMALL) == 0
    for key, name in ((), "zh"), (("tokenize=char",), "char"):
        out = said_of(capsys, "eval", "last", f"out={tmp_path / 'o.jsonl'}", *key)
        assert f"tok:{name}|" in out["signature"] and out["examples"] == "8"
        said = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
        assert out.get("unended", "0").split()[0] == str(sum(s.get("unended", False) for s in said))


def test_a_user_that_cannot_be_asked_is_counted(tmp_path, capsys):
    rows = [f"u{u} i{(u + k) % 7}" for u in range(9) for k in range(4)]
    data = write(tmp_path / "x.txt", [*rows, "v i1", "v i2", "v i3", "v new"])
    small = ("steps=1", "dim=16", "layers=1", "length=8", "threads=1", "warmup=1")
    assert qkv("train", "gru4rec-nano", f"data={data}", *small) == 0
    out = said_of(capsys, "eval", "last", "part=test", f"out={tmp_path / 'o.jsonl'}")
    assert out["examples"] == "9 of 10; 1 were left out by the task"


def test_the_loss_of_balanced_classes_is_reported_as_it_is():
    """weights=balanced weighs what is learnt; what is printed while training is what an evaluation prints."""
    torch.manual_seed(0)
    model = models.create("bert-nano", vocab=300, dim=16, layers=1, heads=2, output="sequence", labels=2, label_names=("a", "b"))
    kind = objectives.task_of("classification")
    tokenizer = tokenizers.train("char", ["abc def"], 300)
    found = [Example(f"{'abc'[i % 3]} def", label="b" if i % 10 == 0 else "a", where=f"row {i}") for i in range(40)]
    balanced, plain = (kind(tokenizer, model.config, 16, weights=w) for w in ("balanced", "none"))
    items = balanced.encode(found, training=True)
    a, b = (o.loss(model.eval(), o.pairs(items, None)) for o in (balanced, plain))
    assert float(a.metrics["loss"]) == pytest.approx(float(b.metrics["loss"]), rel=1e-6)
    assert float(a.value) != pytest.approx(float(b.value), rel=1e-3)
