"""What models are trained to do: the ways text is spoilt, and what is asked for."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import qkv
from qkv import data, models, objectives
from qkv.checkpoints import files
from qkv.data import tokenizer as tokenizers
from qkv.models.loss import IGNORE
from qkv.objectives import noise
from qkv.training import folder, loop, recipe

WORDS = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
ID = {w: i for i, w in enumerate([*WORDS, "<X>", "<Y>", "<Z>", "<M>", "apple"])}
SENTINELS = [ID["<X>"], ID["<Y>"], ID["<Z>"]]


def ids(text):
    return np.array([ID[w] for w in text.split()])


def words(row):
    back = {i: w for w, i in ID.items()}
    return " ".join(back[int(i)] for i in row)


def chosen(*which):
    return np.array([w in which for w in WORDS])


ORIGINAL = " ".join(WORDS)
T5_TABLE = {  # Raffel et al., 2020, table 3 (its deshuffled row has a word, "fun", that the sentence has not)
    "prefix": (lambda s: noise.prefix_lm(s, 4), "Thank you for inviting", "me to your party last week ."),
    "bert_style": (
        lambda s: noise.bert_style(s, chosen("for", "inviting", "last"), ID["<M>"], np.where(chosen("last"), ID["apple"], -1)),
        "Thank you <M> <M> me to your party apple week .",
        ORIGINAL,
    ),
    "deshuffle": (
        lambda s: noise.deshuffle(s, np.array([7, 4, 2, 6, 5, 10, 8, 1, 3, 9, 0])),
        "party me for your to . last you inviting week Thank",
        ORIGINAL,
    ),
    "mass_style": (lambda s: noise.mass_style(s, chosen("for", "inviting", "last"), ID["<M>"]), "Thank you <M> <M> me to your party <M> week .", ORIGINAL),
    "replace_spans": (
        lambda s: noise.replace_spans(s, chosen("for", "inviting", "last"), SENTINELS),
        "Thank you <X> me to your party <Y> week .",
        "<X> for inviting <Y> last <Z>",
    ),
    "drop_tokens": (lambda s: noise.drop_tokens(s, chosen("for", "inviting", "last")), "Thank you me to your party week .", "for inviting last"),
    "random_spans": (
        lambda s: noise.replace_spans(s, chosen("for", "inviting", "me", "your", "party", "last"), SENTINELS),
        "Thank you <X> to <Y> week .",
        "<X> for inviting me <Y> your party last <Z>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", T5_TABLE)
def test_the_rows_of_t5s_table(row):
    make, inputs, targets = T5_TABLE[row]
    a, b = make(ids(ORIGINAL))
    assert (words(a), words(b)) == (inputs, targets)


def test_more_spans_than_sentinels_is_refused():
    with pytest.raises(ValueError, match="3 spans need 4 sentinels and there are 3"):
        noise.replace_spans(ids(ORIGINAL), chosen("you", "me", "your"), SENTINELS)


def test_random_spans_have_the_rate_the_mean_and_gaps():
    rng, lengths, share = data.rng(0), [], []
    for _ in range(300):
        n = noise.random_spans(200, 0.15, 3.0, rng)
        runs = noise.runs(n)
        lengths += [z - a for a, z in runs]
        share.append(n.mean())
        assert not n[0] and len(runs) == 10
    assert np.mean(share) == 0.15 and abs(np.mean(lengths) - 3.0) < 0.01 and len(set(lengths)) > 4


@pytest.fixture(scope="module")
def wordpiece():
    text = ["the unbelievable transformers are reading unreadable letters slowly . they do so again and again !"] * 50
    return tokenizers.train("wordpiece", text, 80)


def sample_ids(tokenizer, rows, length, seed=0):
    low = int(tokenizer.specials().max()) + 1
    return torch.from_numpy(data.rng(seed).integers(low, len(tokenizer), (rows, length)))


def proportions(objective, rows=8, length=4096, times=220):
    """Shares of chosen tokens that became [MASK], another token, and stayed."""
    counts = np.zeros(3)
    for i in range(times):
        ids = sample_ids(objective.tokenizer, rows, length, i)
        out, at, _ = objective.corrupt(ids, data.rng(1, i))
        new, old = out[at], ids[at]
        mask = new == objective.tokenizer.mask
        counts += [int(mask.sum()), int((~mask & (new != old)).sum()), int((~mask & (new == old)).sum())]
    total = counts.sum()
    # a random token is the same one by chance
    luck = counts[1] / (len(objective.ordinary) - 1)
    return (counts + np.array([0, luck, -luck])) / total, total


def right_proportions(objective):
    shares, total = proportions(objective)
    assert total > 1e6
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.002)


def test_80_10_10_over_a_million_selections(wordpiece):
    right_proportions(objectives.Masked(wordpiece))


@pytest.mark.parametrize("mask,random", ((0.1, 0.8), (0.8, 0.0), (0.8, 0.2)))
def test_other_proportions_would_be_noticed(wordpiece, mask, random):
    with pytest.raises(AssertionError):
        right_proportions(objectives.Masked(wordpiece, mask=mask, random=random))


@pytest.mark.parametrize("rate", (0.15, 0.4, 0.8))
@pytest.mark.parametrize("unit", ("token", "word", "span"))
def test_the_rate_of_masked_tokens(wordpiece, rate, unit):
    o = objectives.Masked(wordpiece, rate, unit=unit)
    ids = sample_ids(wordpiece, 64, 128)
    share = o.corrupt(ids, data.rng(0))[1].float().mean().item()
    assert abs(share - rate) < {"token": 0.005, "word": 0.02, "span": 0.04}[unit]


def test_special_tokens_are_never_masked(wordpiece):
    ids = sample_ids(wordpiece, 16, 64)
    ids[:, ::3] = wordpiece.sep
    for unit in ("token", "word", "span"):
        assert not objectives.Masked(wordpiece, 0.5, unit=unit).corrupt(ids, data.rng(0))[1][:, ::3].any()


@pytest.mark.parametrize("unit", ("word", "span"))
def test_whole_words_and_spans_share_their_fate(wordpiece, unit):
    o = objectives.Masked(wordpiece, 0.3, unit=unit)
    ids = torch.tensor([wordpiece.encode("the unbelievable transformers are reading unreadable letters slowly . " * 4)] * 32)
    out, at, span = o.corrupt(ids, data.rng(2))
    word = noise.words(ids, o.begins)
    for row in range(len(ids)):
        for w in range(int(word[row].max()) + 1):
            assert len(set(at[row][word[row] == w].tolist())) == 1  # all pieces or none
    if unit == "span":
        same = (span[:, 1:] == span[:, :-1]) & (span[:, 1:] >= 0)
        masked = out == wordpiece.mask
        assert same.any() and (masked[:, 1:] == masked[:, :-1])[same].all()


def test_lengths_of_spans_are_geometric(wordpiece):
    allowed = torch.ones(400, 256, dtype=torch.bool)
    each = torch.arange(256)[None].expand(400, -1)  # every token is a word
    _, span = noise.spans(allowed, each, 0.15, data.rng(3))
    lengths = np.concatenate([np.unique(s[s >= 0], return_counts=True)[1] for s in span.numpy()])
    assert lengths.max() == 10 and abs(lengths.mean() - 3.8) < 0.3  # the paper's mean; overlaps and edges change it a little


def test_static_masks_stay_and_dynamic_ones_move(wordpiece):
    long = sample_ids(wordpiece, 4, 300)
    for unit in ("token", "word"):
        o = objectives.Masked(wordpiece, unit=unit, static=True)
        a, b = (o.corrupt(long, data.rng(i)) for i in (0, 1))
        assert torch.equal(a[1], b[1]) and torch.equal((a[0] == wordpiece.mask), (b[0] == wordpiece.mask))
        moved = o.corrupt(long[:, 10:], data.rng(0))[1]  # another window over the same text
        agree = (moved[:, 5:-5] == a[1][:, 15:-5]).float().mean()
        assert agree > 0.95
    o = objectives.Masked(wordpiece)
    assert not torch.equal(o.corrupt(long, data.rng(0))[1], o.corrupt(long, data.rng(1))[1])


def encoder(tokenizer, name="bert-nano", **fields):
    torch.manual_seed(0)
    shape = dict(vocab=len(tokenizer), length=48, dim=32, layers=2, heads=2, hidden=64, pad=tokenizer.pad)
    return qkv.create(name, **shape | fields)


def test_next_sentence_and_sentence_order(wordpiece):
    ids = sample_ids(wordpiece, 64, 45)
    for output, second in (("pretraining", "next"), ("pretraining-order", "order"), ("next", "next")):
        cfg = encoder(wordpiece, output=output).config
        o = objectives.make("sentences", cfg, wordpiece, False)
        assert o.second == second
        batch = o.batch((ids, None, None), data.rng(5))
        wrong = batch.labels if output == "next" else batch.targets["wrong"]
        whole = batch.inputs["input_ids"].clone()
        if output != "next":
            whole.view(-1)[batch.inputs["at"]] = batch.labels
        types = batch.inputs["token_type_ids"]
        assert (whole[:, 0] == wordpiece.cls).all() and ((whole == wordpiece.sep).sum(1) == 2).all() and 10 < wrong.sum() < 54
        for row in range(len(ids)):
            first = int((whole[row] == wordpiece.sep).nonzero()[0])
            a, b = whole[row, 1:first], whole[row, first + 1 : -1]
            assert types[row].tolist() == [0] * (first + 1) + [1] * (len(b) + 1)
            if second == "order":
                right = torch.cat([b, a]) if wrong[row] else torch.cat([a, b])
                assert torch.equal(right, ids[row])
            else:
                assert torch.equal(a, ids[row, : len(a)]) and torch.equal(b, ids[row, len(a) :]) == (not wrong[row])


def test_the_two_losses_of_sentences_add_up(wordpiece):
    model = encoder(wordpiece, output="pretraining").eval()
    o = objectives.make("sentences", model.config, wordpiece, False)
    batch = o.batch((sample_ids(wordpiece, 8, 45), None, None), data.rng(5))
    got = o.loss(model, batch)
    out = model(input_ids=batch.inputs["input_ids"], token_type_ids=batch.inputs["token_type_ids"])
    tokens = F.cross_entropy(out["prediction_logits"].flatten(0, 1)[batch.inputs["at"]], batch.labels)
    second = F.cross_entropy(out["seq_relationship_logits"], batch.targets["wrong"])
    torch.testing.assert_close(got.value / got.count, tokens + second)


def test_detection_is_scored_on_all_tokens(wordpiece):
    model = encoder(wordpiece, "electra-nano")
    o = objectives.make("detect(size=0.5, weight=50)", model.config, wordpiece, False)
    o.prepare(model)
    joint = objectives.joint(model, o)
    batch = o.batch((sample_ids(wordpiece, 8, 48), None, None), data.rng(1))
    assert (batch.inputs["input_ids"].view(-1)[batch.inputs["at"]] == wordpiece.mask).all()
    got = joint(**batch.inputs, **batch.targets, labels=batch.labels)
    judged = model(input_ids=got["ids"])["logits"]
    changed = (got["ids"] != batch.targets["original"]).float()
    assert 0 < changed.sum() <= len(batch.labels) and torch.equal(changed, got["replaced"])
    tokens = F.binary_cross_entropy_with_logits(judged, changed)  # the mean over all 8 x 48 tokens
    filled = F.cross_entropy(o.module(input_ids=batch.inputs["input_ids"], at=batch.inputs["at"])["logits"], batch.labels)
    torch.testing.assert_close(got["loss"] / len(batch.labels), filled + 50 * tokens)
    assert o.module.embed.token is model.embed.token and o.module.config.dim == 16
    again = joint(**batch.inputs, **batch.targets, labels=batch.labels)
    assert torch.equal(again["ids"], got["ids"])  # samples are a function of the batch


def test_spans_are_predicted_from_what_stands_around_them(wordpiece):
    model = encoder(wordpiece)
    o = objectives.make("masked(unit=span, boundary=true)", model.config, wordpiece, False)
    o.prepare(model)
    joint = objectives.joint(model, o)
    rows = torch.tensor([wordpiece.encode("the unbelievable transformers are reading unreadable letters slowly . " * 4)[:40]] * 4)
    batch = o.batch((rows, None, None), data.rng(3))
    seen = []
    o.module.register_forward_pre_hook(lambda m, args: seen.append(args))
    loss = o.loss(joint, batch)
    left, right, place = seen[0]
    out = model(input_ids=batch.inputs["input_ids"])["hidden"]
    span = batch.targets["span"]
    for n, flat in enumerate(batch.inputs["at"].tolist()):
        row, i = divmod(flat, rows.shape[1])
        a = z = i
        while a > 0 and span[row, a - 1] == span[row, i]:
            a -= 1
        while z + 1 < rows.shape[1] and span[row, z + 1] == span[row, i]:
            z += 1
        assert int(place[n]) == i - a
        if a > 0:
            torch.testing.assert_close(left[n], out[row, a - 1])
        if z + 1 < rows.shape[1]:
            torch.testing.assert_close(right[n], out[row, z + 1])
    plain = model(**batch.inputs, labels=batch.labels)["loss"]
    states = o.module(left, right, place)
    more = F.cross_entropy(states @ model.head.out.weight.T + model.head.out.bias, batch.labels, reduction="sum")
    torch.testing.assert_close(loss.value, plain + more)


def test_contrastive_pairs(wordpiece):
    model = encoder(wordpiece, output="hidden").eval()
    o = objectives.make("contrastive(temperature=0.1)", model.config, wordpiece, True)
    pairs = [(r[:5].tolist(), r[5:].tolist()) for r in sample_ids(wordpiece, 6, 12)]
    got = o.loss(model, o.pairs(pairs, None))
    vector = lambda ids: F.normalize(model(input_ids=torch.tensor([[wordpiece.cls, *ids, wordpiece.sep]]))["hidden"].mean(1), dim=-1)
    a, b = (torch.cat([vector(p[i]) for p in pairs]) for i in (0, 1))
    scores = a @ b.T / 0.1
    want = (F.cross_entropy(scores, torch.arange(6)) + F.cross_entropy(scores.T, torch.arange(6))) / 2
    torch.testing.assert_close(got.value / got.count, want)


def test_prefix_is_read_both_ways_and_not_asked_for(wordpiece):
    torch.manual_seed(0)
    model = qkv.create("gpt-nano", vocab=len(wordpiece), length=32, dim=32, layers=2, heads=2, pattern="prefix").eval()
    o = objectives.make("auto", model.config, wordpiece, False)
    batch = o.batch((sample_ids(wordpiece, 6, 33), None, None), data.rng(1))
    labels, prefix = batch.labels.view(6, 32), batch.inputs["prefix"]
    for row in range(6):
        cut = int(prefix[row].sum())
        assert (labels[row, : cut - 1] == IGNORE).all() and (labels[row, cut - 1 :] != IGNORE).all()
    changed = {k: v.clone() for k, v in batch.inputs.items()}
    row = int((prefix.sum(1) > 2).nonzero()[0])
    last = int(prefix[row].sum()) - 1
    changed["input_ids"][row, last] = (changed["input_ids"][row, last] - 20) % 40 + 20 + 1
    a, b = model(**batch.inputs)["logits"][row], model(**changed)["logits"][row]
    assert not torch.allclose(a[0], b[0])  # the first token sees the end of the prefix


NOISES = {
    "masking": lambda old, new, t: len(old) == len(new) and 0.1 < (new == t.mask).mean() < 0.5 and (old == new)[new != t.mask].all(),
    "deletion": lambda old, new, t: len(new) < len(old) and is_subsequence(new, old),
    "infilling": lambda old, new, t: len(new) < len(old) and is_subsequence(new[new != t.mask], old) and (new == t.mask).sum() < 0.2 * len(old),
    "permutation": lambda old, new, t: sorted(old) == sorted(new) and (old != new).any() and len(new) == len(old),
    "rotation": lambda old, new, t: any((np.roll(old, i) == new).all() for i in range(1, len(old))),
}  # fmt: skip


def is_subsequence(a, b):
    it = iter(b)
    return all(x in it for x in a)


@pytest.mark.parametrize("name", NOISES)
def test_barts_noises(wordpiece, name):
    cfg = models.preset("bart-nano", vocab=len(wordpiece), pad=wordpiece.pad, start=wordpiece.bos, eos=wordpiece.eos)
    o = objectives.make(f"corrupt({name})", cfg, wordpiece, False)
    text = "the letters are reading . they do so again ! transformers are slowly unreadable . " * 4
    old = np.array(wordpiece.encode(text))
    right = [NOISES[name](old, o.spoil(old, data.rng(i))[0], wordpiece) for i in range(20)]
    assert sum(right) >= 18, right  # a draw may leave things as they are
    assert (o.spoil(old, data.rng(1))[1] == old).all()


def test_infilled_lengths_are_poisson():
    old = np.arange(1000, 2000)
    gaps = []
    for i in range(60):
        new = noise.infill(old, 0.3, 1, data.rng(i))
        kept = new[new != 1]
        marks = np.flatnonzero(new == 1)
        for m in marks:
            before = new[m - 1] if m else 999
            after = new[m + 1] if m + 1 < len(new) else 2000
            gaps.append(after - before - 1)
        assert abs(1 - len(kept) / 1000 - 0.3) < 0.06
    assert abs(np.mean(gaps) - 3.0) < 0.35 and 0.02 < np.mean(np.array(gaps) == 0) < 0.1  # Poisson(3) is 0 in 5 % of draws


@pytest.mark.parametrize("row", objectives.OBJECTIVES["denoise"].NOISES)
def test_denoising_is_reproducible_and_fits_the_model(row):
    tokenizer = tokenizers.train("bpe", ["to be or not to be , that is the question"] * 20, 300)
    tokenizer.add_sentinels(100)
    assert tokenizer.sentinel_ids()[0] == len(tokenizer) - 1
    cfg = models.preset("t5-nano", vocab=len(tokenizer), length=64, pad=tokenizer.pad, eos=tokenizer.eos)
    o = objectives.make(f"denoise({row})", cfg, tokenizer, False)
    ids = torch.from_numpy(data.rng(0).integers(10, 260, (4, 64 + o.extra)))
    a, b = (o.batch((ids, None, None), data.rng(7)) for _ in range(2))
    assert all(torch.equal(a.inputs[k], b.inputs[k]) for k in a.inputs) and torch.equal(a.labels, b.labels)
    assert a.inputs["input_ids"].shape[1] <= 64 and a.inputs["decoder_input_ids"].shape[1] <= 64
    model = models.build(cfg)
    assert torch.isfinite(o.loss(model, a).value)


REFUSED = (
    ("masked", "gpt-nano", {}, False, "needs the topology Encoder; this model is of Decoder"),
    ("sentences", "bert-nano", {}, False, "output=pretraining or pretraining-order or next, not lm"),
    ("sentences", "distilbert-nano", {"output": "next", "pooler": True}, False, "needs types=2, not 0"),
    ("detect", "bert-nano", {}, False, "output=detect, not lm"),
    ("prefix", "gpt-nano", {}, False, "lets no token look ahead; use pattern=prefix"),
    ("prefix", "gpt-nano", {"pattern": "full"}, False, "sees the very tokens it shall predict"),
    ("denoise", "bert-nano", {}, False, "needs the topology EncoderDecoder"),
    ("seq2seq", "t5-nano", {}, False, "reads pairs of texts"),
    ("corrupt", "bart-nano", {}, True, "reads running text, not pairs"),
    ("corrupt(shuffling)", "bart-nano", {}, False, "'shuffling' is not one of masking, deletion"),
    ("denoise(spans)", "t5-nano", {}, False, "'spans' is not one of random_spans"),
    ("masked(rate=2)", "bert-nano", {}, False, "rate=2: must be between 0 and 1"),
    ("masked(mask=0.9, random=0.3)", "bert-nano", {}, False, "must be shares of 1"),
    ("masked(boundary=true)", "bert-nano", {}, False, "needs unit=span"),
    ("masked(units=word)", "bert-nano", {}, False, "takes no 'units'"),
    ("maskd", "bert-nano", {}, False, "is not one of auto, causal.*Did you mean 'masked'"),
)  # fmt: skip


@pytest.mark.parametrize("text,preset,fields,paired,say", REFUSED)
def test_an_objective_that_does_not_fit_is_refused(wordpiece, text, preset, fields, paired, say):
    with pytest.raises(ValueError, match=say):
        objectives.make(text, models.preset(preset, vocab=len(wordpiece), **fields), wordpiece, paired)


def test_whole_words_need_pieces_that_tell():
    letters = tokenizers.train("char", ["abc"])
    with pytest.raises(ValueError, match="whole words cannot be told"):
        objectives.Masked(letters, unit="word")


NANOS = ("albert-nano", "bart-nano", "biogpt-nano", "distilbert-nano", "electra-nano", "gpt1-nano", "gpt3-nano", "gptneo-nano", "palm-nano",
         "roberta-nano", "switch-nano", "t5-nano")  # fmt: skip


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The cat sat on the mat. The dog lay on the log! Who was it? It was the other cat of the neighbours.\n" * 120)
    return path


@pytest.mark.parametrize("name", NANOS)
def test_every_nano_preset_learns_with_its_own_objective(name, text_file, tmp_path, monkeypatch):
    from qkv.cli import train as verb

    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    raw = verb.defaults(name)
    assert raw["data"]["source"] == "pydoc"
    raw["data"] |= {"source": str(text_file), "vocab": 500}
    raw["model"] |= {"dim": 64, "length": 40, "hidden": 128}
    raw["train"] = {k: v for k, v in raw["train"].items() if k != "seconds"} | {
        "steps": 30,
        "threads": 1,
        "batch": 8,
        "lr": 3e-3,
        "warmup": 5,
    }
    where = tmp_path / "run"
    where.mkdir()
    held = loop.train(recipe.resolve(raw), where)
    before = folder.read_metrics(where / "metrics.jsonl")[0]["valid_loss"]
    assert held["loss"] < before - 0.3
    from qkv.checkpoints import runs

    again = qkv.load(runs.newest(where / "checkpoints")[0])
    assert type(again.config) is type(models.preset(name))
    if name == "electra-nano":  # the generator is kept beside the model, not in it
        kept = files.read_tensors(runs.newest(where / "checkpoints")[0] / "objective.safetensors")
        assert kept and not any("embed.token" in n for n in kept)


def test_what_an_objective_trains_beside_the_model_resumes_bit_for_bit(text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    from qkv.checkpoints import runs

    def go(where, steps, resume=None):
        raw = {
            "model": {"preset": "electra-nano", "dim": 32, "length": 32, "hidden": 64},
            "data": {"source": str(text_file), "tokenizer": "char"},  # a trained one breaks ties anew each time
            "train": {
                "steps": steps,
                "threads": 1,
                "batch": 4,
                "schedule": "inverse_sqrt",
                "precision": "exact",
                "warmup": 2,
                "eval_every": 1000,
                "save_every": 1000,
            },
        }
        where.mkdir(exist_ok=True)
        loop.train(recipe.resolve(raw), where, resume=resume)
        newest = runs.newest(where / "checkpoints")[0]
        return {
            n: t for f in ("model", "objective", "optimizer") for n, t in files.read_tensors(newest / f"{f}.safetensors").items()
        }, newest

    whole, _ = go(tmp_path / "a", 8)
    _, half = go(tmp_path / "b", 4)
    rest, _ = go(tmp_path / "b", 8, half)
    assert set(whole) == set(rest) and all(torch.equal(whole[n], rest[n]) for n in whole)


def test_a_batch_is_shared_by_rows(wordpiece):
    model = encoder(wordpiece, output="pretraining").eval()
    o = objectives.make("sentences", model.config, wordpiece, False)
    batch = o.batch((sample_ids(wordpiece, 8, 45), None, None), data.rng(5))
    whole = o.loss(model, batch)
    parts = [o.loss(model, batch.share(r, 2)) for r in range(2)]
    torch.testing.assert_close(sum(p.value for p in parts), whole.value)
    assert sum(p.count for p in parts) == whole.count
    assert json.dumps(whole.count)
