"""The compiled kernels and the engine: equal to the plain path, the same whatever else is in the pass, and nothing lost."""

import random
import threading

import pytest
import torch

import qkv
from qkv import native
from qkv.data import tokenizer as tokenizers
from qkv.embed import Embedder, settings
from qkv.generation import Draft, Engine, Full, NGram, Sampling, beam_search, generate
from qkv.generation.engine import LoweredRows, ModelRows
from qkv.models.heads import LanguageHead

MODELS = {
    "gpt": lambda: qkv.create("gpt-nano", vocab=61, dim=48, heads=2, layers=2, length=64),
    "llama": lambda: qkv.create("llama-nano", vocab=61, length=64),
    "window": lambda: qkv.create("mistral-nano", vocab=61, length=64, pattern="sliding(5)"),
    "alibi": lambda: qkv.create("gpt-nano", vocab=61, dim=48, heads=3, layers=2, length=64, position="alibi", norm="rms", order="out"),
    "odd": lambda: qkv.create("llama-nano", vocab=61, dim=36, heads=3, kv_heads=1, head_dim=20, hidden=50, layers=2, length=64,
                              position="rope(rotated=12, interleaved=True)", biases="qkvo", ffn=["gated(gelu_new)", "plain(relu)"]),
    "parallel": lambda: qkv.create("gpt-nano", vocab=61, dim=48, heads=2, layers=2, length=64, order="parallel"),
    "transformer": lambda: qkv.create("transformer-nano", vocab=61, length=64, start=1, pad=0),
    "t5": lambda: qkv.create("t5-nano", vocab=61, length=64, start=0, pad=0),
    "marian": lambda: qkv.create("MarianMTModel", vocab_size=61, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
                                 encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, pad_token_id=60, decoder_start_token_id=60, eos_token_id=0),
}  # fmt: skip


def made(name):
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    with torch.no_grad():  # biases and norms that matter, answers that differ
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.15 * torch.randn_like(p))
    return model


def texts(count, model, longest=30, seed=0):
    r = random.Random(seed)
    return [[r.randrange(3, 58) for _ in range(r.randint(1, longest))] for _ in range(count)]


@pytest.fixture(scope="session", autouse=True)
def library():
    can, why = native.available()
    assert can, f"these tests need a C++ compiler: {why}"


def written(low, texts_):
    """Scores of every place of decoder texts, in one pass."""
    ids, row, place, lengths = low.flat(texts_)
    store = low.store(len(texts_), int(lengths.max()))
    return low.write.run(ids, place, row, place, store=store)["logits"].clone().split(lengths.tolist())


@pytest.mark.parametrize("name", ["gpt", "llama", "window", "alibi", "odd", "parallel"])
@pytest.mark.parametrize("threads", [1, 2])
def test_scores_equal_the_plain_forward(name, threads):
    model = made(name)
    low = native.lower(model, "fp32", 64, threads)
    rows = texts(7, model)
    with torch.no_grad():
        for text, got in zip(rows, written(low, rows)):
            want = model(input_ids=torch.tensor([text]))["logits"][0]
            assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("packing", native.PACKINGS)
@pytest.mark.parametrize("name", ["gpt", "llama", "odd"])
def test_rounded_weights_give_what_the_plain_forward_gives_with_them(name, packing):
    """With int4 weights activations are rounded to int8 too, which the wider tolerance is for; keys and values are bfloat16."""
    model = made(name)
    low, near = native.lower(model, packing, 64), made(name)
    near.head.out.weight = torch.nn.Parameter(near.head.out.weight.clone())  # the embedding stays exact
    for m in near.modules():
        if isinstance(m, torch.nn.Linear):
            m.weight.data = native.rounded(m.weight, packing)[2]
    rows = texts(5, model)
    rms = lambda x: x.square().mean().sqrt().item()
    with torch.no_grad():
        for text, got in zip(rows, written(low, rows)):
            want, exact = (m(input_ids=torch.tensor([text]))["logits"][0] for m in (near, model))
            short = native.library.load().qkv_unit() == 4  # a processor whose int8 products take activations of 8 bits
            bound = {"fp32": 1e-5, "bf16": 0.01, "int8": 0.08 if short else 0.01, "int4": 0.08}[packing]
            assert rms(got - want) < bound * rms(want)
            assert packing == "fp32" or rms(want - exact) > 1e-4 * rms(exact)


def test_weights_take_the_bits_that_they_should():
    for packing, bits in (("fp32", 32), ("bf16", 16), ("int8", 8), ("int4", 4.5)):
        packed = native.weights.pack(torch.randn(256, 512), None, packing)
        assert 8 * (packed.data.nbytes + (packed.scale.nbytes if packing == "int4" else 0)) == 256 * 512 * bits
        assert packed.error < {"fp32": 1e-9, "bf16": 0.002, "int8": 0.012, "int4": 0.12}[packing]


@pytest.mark.parametrize("packing", native.PACKINGS)
@pytest.mark.parametrize("name", ["gpt", "llama", "window", "odd"])
def test_a_row_is_the_same_bit_for_bit_whatever_stands_beside_it(name, packing):
    low = native.lower(made(name), packing, 64, 2)
    rows = texts(9, low.model)
    together = written(low, rows)
    for text, whole in zip(rows, together):
        store = low.store(3, 64)
        for i, token in enumerate(text):  # alone, token by token, in another row of the store
            at = torch.tensor([i], dtype=torch.int32)
            out = low.write.run(torch.tensor([token]), at, torch.tensor([2], dtype=torch.int32), at, store=store)["logits"]
            assert torch.equal(out[0], whole[i])


@pytest.mark.parametrize("width, unit", [(8, 4), (16, 2), (16, 4)])
def test_the_layouts_of_other_processors_give_the_same(monkeypatch, width, unit):
    """AVX-512 and VNNI differ from AVX2 in the width of a panel and in the bytes that one product takes; here in plain C++."""
    texts_ = texts(5, None)
    lowered = {p: native.lower(made("odd"), p, 64, 2) for p in native.PACKINGS}
    want = {p: [x.clone() for x in written(low, texts_)] for p, low in lowered.items()}
    other = native.library.load("-DQKV_PLAIN", f"-DQKV_WIDTH={width}", f"-DQKV_UNIT={unit}")
    assert (other.qkv_width(), other.qkv_unit()) == (2 * width, unit)
    monkeypatch.setattr(native.library, "load", lambda: other)
    for packing in native.PACKINGS:
        low = native.lower(made("odd"), packing, 64, 2)
        for got, w in zip(written(low, texts_), want[packing]):  # int8 activations have 8 bits in one layout and 16 in the other
            assert (got - w).square().mean().sqrt() < {"fp32": 1e-5, "bf16": 1e-3, "int8": 0.05, "int4": 1e-2}[
                packing
            ] * w.square().mean().sqrt()


def test_short_activations_cost_little():
    model, texts_ = made("gpt"), texts(5, None)
    exact, usual, short = (
        written(native.lower(model, p, 64, 2, short=s), texts_) for p, s in (("fp32", False), ("int8", False), ("int8", True))
    )
    off = lambda a: (sum((x - y).square().sum() for x, y in zip(a, exact)) / sum(y.square().sum() for y in exact)).sqrt()
    assert off(usual) < (0.02 if native.library.load().qkv_unit() == 2 else 0.04) and off(short) < 0.04


@pytest.mark.parametrize("name", MODELS)
def test_greedy_sampling_and_beams_are_those_of_the_plain_path(name):
    model = made(name)
    low, rows = native.lower(model, "fp32", 64), texts(4, model, 12)
    assert generate(low, rows, most=20, end=2) == generate(model, rows, most=20, end=2)
    sampling = Sampling(temperature=0.8, top_k=9, top_p=0.9, repetition=1.2, seed=5)
    assert generate(low, rows[:1], sampling, most=20, end=2) == generate(model, rows[:1], sampling, most=20, end=2)
    ours, theirs = (beam_search(m, rows, 4, most=12, end=2, penalty=0.7) for m in (low, model))
    assert ours[0] == theirs[0]
    torch.testing.assert_close(torch.tensor(ours[1]), torch.tensor(theirs[1]), rtol=1e-5, atol=1e-5)


def test_nothing_out_of_bounds_reaches_the_kernels():
    low, i32 = native.lower(made("llama"), "fp32", 20), lambda *x: torch.tensor(x, dtype=torch.int32)
    store = low.store(2, 10)
    for ids, number, row, place, why in (
        ([61], 0, 0, 0, "token id 61 is outside the vocabulary of 61"),
        ([-1], 0, 0, 0, "token id -1"),
        ([3], 20, 0, 0, "position 20 is outside the positions that the model was lowered for of 20"),
        ([3], 0, 2, 0, "row 2 is outside the cache's rows of 2"),
        ([3], 0, 0, 10, "place 10 is outside the cache of 10"),
    ):
        with pytest.raises(ValueError, match=why):
            low.write.run(torch.tensor(ids), i32(number), i32(row), i32(place), store=store)
    with pytest.raises(ValueError, match="the prompt has 21 tokens and the model was lowered for 20"):
        generate(low, [[3] * 21])
    assert len(generate(low, [[3] * 15], most=20, end=-1)[0]) == 6, "what there is room for, and one more"
    with pytest.raises(ValueError, match="a text has 30 tokens and the model's context is 20"):
        generate(native.lower(made("t5"), "fp32", 20), [[3] * 30])


def test_beams_copy_no_keys(monkeypatch):
    low = native.lower(made("gpt"), "fp32", 64)
    monkeypatch.setattr(native.Store, "copy", lambda *a: pytest.fail("copied"))
    made_stores = []
    real = native.Lowered.store
    monkeypatch.setattr(
        native.Lowered, "store", lambda self, rows, capacity: made_stores.append((rows, capacity)) or real(self, rows, capacity)
    )
    beam_search(low, texts(2, low.model, 9), 5, most=12, end=2)
    assert len(made_stores) == 1 and made_stores[0][0] == 10


@pytest.mark.parametrize("name", ["gpt", "llama", "transformer", "t5"])
@pytest.mark.parametrize("packing", ["fp32", "int8"])
@pytest.mark.parametrize("guesser", [None, "ngram", "draft"])
def test_the_engine_answers_as_if_each_request_were_alone(name, packing, guesser):
    r = random.Random(3)
    model = made(name)
    low = native.lower(model, packing, 64)
    base = texts(1, model, 30, seed=9)[0] * 2
    prompts = [base[: r.randint(1, 20)] + text for text in texts(14, model, 8)]  # beginnings in common
    choices = [Sampling(temperature=r.choice([0, 1.0]), top_k=20, seed=i, repetition=r.choice([1.0, 1.3])) for i in range(14)]
    lengths = [r.randint(1, 30) for _ in prompts]
    alone = [generate(low, [p], s, most=n, end=2)[0] for p, s, n in zip(prompts, choices, lengths)]
    guess = {None: None, "ngram": NGram(), "draft": Draft(made(name))}[guesser]
    engine = Engine(low, rows=4, guesser=guess)
    requests = [engine.submit(p, s, most=n, end=2) for p, s, n in zip(prompts, choices, lengths)]
    assert [q.result() for q in requests] == alone
    assert {q.reason for q in requests} <= {"end", "length"}
    if guesser:
        assert engine.counts["accepted"] > 0
    if name in ("gpt", "llama"):
        assert engine.counts["reused"] > 50 and engine.counts["passes"] < sum(map(len, alone))


def test_a_perfect_draft_saves_most_passes():
    model = made("gpt")
    plain, quick = Engine(model, rows=1), Engine(model, rows=1, guesser=Draft(made("gpt"), count=4))
    a, b = (e.submit([3, 4, 5], most=40, end=-1).result() for e in (plain, quick))
    assert a == b and plain.counts["passes"] == 40 and quick.counts["passes"] <= 10


def test_an_ngram_goes_on_as_the_text_did():
    guess = NGram(count=3, longest=2)
    assert guess.one([1, 2, 3, 4, 9, 2, 3], 8) == [4, 9, 2, 3][:8] and guess.one([1, 2, 3], 8) == []
    assert guess.guess({0: ([5, 6, 7, 5, 6], 2)}) == {0: [7, 5]}
    assert guess.guess({0: ([1, 3, 2, 3, 1, 3], 9)}) == {0: [2, 3, 1]}, "the longer match decides over the nearer"


def test_the_plain_rows_give_the_same_answers():
    for name in ("gpt", "t5"):
        model = made(name)
        prompts = texts(6, model, 9)
        engine = Engine(model, rows=3)
        assert isinstance(engine.back, LoweredRows)
        engine.back = ModelRows(model, 3, 64)
        requests = [engine.submit(p, most=12, end=2) for p in prompts]
        assert [q.result() for q in requests] == [generate(model, [p], most=12, end=2)[0] for p in prompts]


def test_a_part_that_the_kernels_do_not_know_takes_the_plain_path():
    model = made("gpt")
    model.blocks[0].attn.f.kernel.weights.register_forward_hook(lambda *a: None)
    with pytest.raises(native.CannotLower, match="hook"):
        native.lower(model, "fp32", 64)
    engine = Engine(model, rows=2)
    assert isinstance(engine.back, ModelRows)
    assert engine.generate([[3, 4], [5]], most=5, end=-1) == generate(model, [[3, 4], [5]], most=5, end=-1)
    with pytest.raises(ValueError, match="precision=int8 needs the compiled kernels.*hook"):
        Engine(model, precision="int8")


def test_without_a_compiler_the_plain_path_is_taken(monkeypatch):
    def missing():
        raise native.NoLibrary("there is no C++ compiler")

    monkeypatch.setattr(native.program.library, "load", missing)
    assert isinstance(Engine(made("gpt"), rows=1).back, ModelRows)
    with pytest.raises(ValueError, match="precision=int4 needs the compiled kernels.*no C"):
        Engine(made("gpt"), precision="int4")


def test_a_compiler_that_fails_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("QKV_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    native.library.load.cache_clear()
    try:
        assert native.available() == (False, "false failed: ")
        monkeypatch.setenv("CXX", "no-such-compiler")
        native.library.load.cache_clear()
        assert "no C++ compiler" in native.available()[1]
        monkeypatch.setenv("QKV_NATIVE", "0")
        native.library.load.cache_clear()
        assert native.available() == (False, "QKV_NATIVE=0")
    finally:
        native.library.load.cache_clear()


def test_cancelled_failed_and_refused_requests_take_nothing_with_them(monkeypatch):
    engine = Engine(made("gpt"), rows=2, queue=3, capacity=32)
    first = engine.submit([3, 4], most=20, end=-1)
    stream = first.stream()
    got = [next(stream) for _ in range(3)]
    others = [engine.submit([5, 6], most=4, end=-1) for _ in range(3)]
    with pytest.raises(Full, match=r"3 requests wait already \(queue=3\)"):
        engine.submit([7], most=3)
    first.cancel()
    others[2].cancel()
    assert list(stream) == first.tokens[3:] and first.tokens[:3] == got and first.reason == "cancelled" and others[2].reason == "cancelled"
    assert [len(q.result()) for q in others] == [4, 4, 0]
    for bad, why in (([], "empty"), ([99], "token id 99 is outside the vocabulary of 61"), ([3] * 33, "33 tokens and the cache holds 32")):
        with pytest.raises(ValueError, match=why):
            engine.submit(bad)
    doomed, waiting = engine.submit([8], most=5, end=-1), engine.submit([9], most=5, end=-1)
    third = engine.submit([9, 9], most=5, end=-1)
    real = engine.back.run
    monkeypatch.setattr(engine.back, "run", lambda *a: (_ for _ in ()).throw(RuntimeError("lost")))
    engine.step()
    monkeypatch.setattr(engine.back, "run", real)
    for q in (doomed, waiting):
        with pytest.raises(RuntimeError, match="lost"):
            q.result()
    assert third.result() == generate(engine.model, [[9, 9]], most=5, end=-1)[0], "the engine goes on"
    assert all(row.request is None for row in engine.rows) and not engine.waiting


def test_a_full_cache_ends_a_request_and_a_long_prompt_is_read_in_pieces(monkeypatch):
    model = made("gpt")
    engine = Engine(model, rows=1, capacity=32)
    q = engine.submit([3] * 30, most=20, end=-1)
    assert q.result() == generate(model, [[3] * 30], most=3, end=-1)[0] and q.reason == "length"
    monkeypatch.setattr("qkv.generation.engine.PIECE", 7)
    engine = Engine(model, rows=2)
    long, short = engine.submit(list(range(3, 53)), most=5, end=-1), engine.submit([3], most=10, end=-1)
    engine.step()
    assert len(short.tokens) == 1 and not long.tokens
    assert long.result() == generate(model, [list(range(3, 53))], most=5, end=-1)[0]
    assert short.result() == generate(model, [[3]], most=10, end=-1)[0]


def test_a_serving_engine_answers_many_threads():
    model = made("gpt")
    want = {n: generate(model, [[n, 4]], most=12, end=-1)[0] for n in range(3, 15)}
    got = {}
    with Engine(model, rows=3, serve=True) as engine:
        ask = lambda n: got.update({n: list(engine.submit([n, 4], most=12, end=-1).stream())})
        threads = [threading.Thread(target=ask, args=(n,)) for n in want]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
        running = engine.submit([3], most=50, end=-1)
    assert got == want and running.reason in ("cancelled", "length") and not engine.thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([3])


def test_what_cannot_be_is_refused_with_what_would(monkeypatch):
    model = made("gpt")
    for options, why in (
        ({"precision": "fp8"}, "precision='fp8' is not one of fp32, bf16, int8, int4"),
        ({"threads": 1000}, "threads=1000: this process may use 1 to"),
        ({"rows": 0}, "rows=0: must be a whole number of at least 1"),
        ({"queue": "x"}, "queue='x': must be a whole number"),
        ({"capacity": 65}, "capacity=65: the model's context is 64 tokens"),
    ):
        with pytest.raises(ValueError, match=why):
            Engine(model, **options)
    each = 2 * 2 * 48 * 64 * 4  # keys and values, layers, width, tokens, bytes
    with monkeypatch.context() as m:
        m.setattr("qkv.runtime.free_memory", lambda: 5 * each / 0.9 + 10)
        Engine(model, rows=5)
        with pytest.raises(ValueError, match=r"rows=6: 6 rows of 64 tokens .* need .* GB and .* are free; rows=5 would fit"):
            Engine(model, rows=6)
    with pytest.raises(ValueError, match="output=hidden"):
        Engine(qkv.create("gpt-nano", output="hidden"))
    with pytest.raises(ValueError, match="its vocabulary has 61 tokens and the model's 65"):
        Engine(qkv.create("gpt-nano", vocab=65), guesser=Draft(model))


# --- embeddings ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def words():
    return tokenizers.train("wordpiece", ["the quick brown fox jumps over the lazy dog " * 20], 120)


SENTENCES = ["the quick brown fox", "dog", "the lazy dog jumps over the quick brown fox " * 3, "fox fox", "over the dog"]


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("preset", ["bert-nano", "t5-nano"])
def test_embeddings_packed_without_padding_are_those_of_each_text_alone(words, preset, pool):
    torch.manual_seed(0)
    model = qkv.create(preset, vocab=len(words), start=1) if preset == "t5-nano" else qkv.create(preset, vocab=len(words), output="hidden")
    embedder = Embedder(model, words, pool=pool, normalize=True)
    assert embedder.low is not None
    got = embedder(SENTENCES)
    with torch.no_grad():
        for text, v in zip(SENTENCES, got):
            ids = torch.tensor(embedder.ids([text]))
            hidden = (model.encode(ids)[0] if preset == "t5-nano" else model(input_ids=ids)["hidden"])[0]
            want = hidden.mean(0) if pool == "mean" else hidden[0]
            torch.testing.assert_close(v, torch.nn.functional.normalize(want, dim=0), rtol=1e-5, atol=1e-5)
    embedder.low = None  # the plain path, padded
    torch.testing.assert_close(embedder(SENTENCES), got, rtol=1e-5, atol=1e-5)
    for packing, least in (("bf16", 0.9999), ("int8", 0.999), ("int4", 0.9)):
        near = Embedder(model, words, pool=pool, normalize=True, precision=packing)(SENTENCES)
        assert least < torch.cosine_similarity(near, got).min() and not torch.equal(near, got)


def test_long_texts_are_cut_and_counted_and_bad_input_is_named(words):
    model = qkv.create("bert-nano", vocab=len(words), output="hidden")
    embedder = Embedder(model, words, length=5)
    assert [len(r) for r in embedder.ids(SENTENCES)] == [5, 3, 5, 4, 5] and embedder.cut == 2
    for options, why in (({"pool": "max"}, "pool='max' is not one of mean, cls"), ({"length": 2}, "there must be room for a token"),
                         ({"precision": "int2"}, "precision='int2'"), ({"threads": 0}, "threads=0")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            Embedder(model, words, **options)
    with pytest.raises(ValueError, match="a decoder reads only backwards"):
        Embedder(made("gpt"), words)


def test_a_folder_says_how_its_vectors_are_made(tmp_path):
    import json

    put = lambda name, x: ((tmp_path / name).parent.mkdir(exist_ok=True), (tmp_path / name).write_text(json.dumps(x)))
    assert settings(tmp_path) == {}
    put("modules.json", [{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "1_Pooling", "type": "a.b.Pooling"},
                         {"path": "2_Normalize", "type": "a.Normalize"}])  # fmt: skip
    put("1_Pooling/config.json", {"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    put("sentence_bert_config.json", {"max_seq_length": 77})
    assert settings(tmp_path) == {"pool": "cls", "normalize": True, "length": 77}
    put("1_Pooling/config.json", {"pooling_mode_max_tokens": True})
    with pytest.raises(ValueError, match="pooling_mode_max_tokens is not one of"):
        settings(tmp_path)


def test_heads_other_than_language_are_refused():
    model = qkv.create("gpt-nano", output="sequence", labels=3)
    assert type(model.head) is not LanguageHead
    with pytest.raises(native.CannotLower, match="the head LastTokenHead"):
        native.lower(model, "fp32", 64)


class Around(torch.nn.Module):
    """What somebody puts around a part; it changes what the part says."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *given, **more):
        return -1.5 * self.inner(*given, **more)


def parts_of(name):
    return [n for n, m in made(name).named_modules() if n and type(m).forward is not torch.nn.Module.forward]


@pytest.mark.parametrize("part", parts_of("llama"))
def test_every_part_that_is_replaced_takes_the_plain_path(part):
    model = made("llama")
    parent, _, leaf = part.rpartition(".")
    model.get_submodule(parent).register_module(leaf, Around(model.get_submodule(part)))
    with pytest.raises(native.CannotLower, match="is not what this model was built of"):
        native.lower(model, "fp32", 64)
    assert native.lower_if(model, "fp32", 64) is None


def test_an_engine_answers_with_the_part_that_was_put_in():
    model = made("gpt")
    before = Engine(model, rows=1).generate([[3, 4]], most=6, end=-1)
    attention = next(m for m in model.modules() if hasattr(m, "k_norm"))
    attention.k_norm = Around(torch.nn.LayerNorm(attention.head_dim))
    model.embed.token = Around(model.embed.token)
    found = Engine(model, rows=1).generate([[3, 4]], most=6, end=-1)
    assert found == generate(model, [[3, 4]], most=6, end=-1) != before
