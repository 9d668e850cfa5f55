"""Generation: every way of choosing, against a plain implementation."""

import itertools

import pytest
import torch

import qkv
from qkv import native
from qkv.data import tokenizer as tokenizers
from qkv.generation import Sampling, beam_search, complete, generate, slide, steps, stream
from qkv.generation.decoding import Decoding

V = 23


def decoder(**kw):
    torch.manual_seed(2)
    return (
        qkv.create("gpt-nano", **({"vocab": V, "dim": 32, "layers": 2, "heads": 2, "length": 24, "init_std": 0.3, "eos": 2} | kw))
        .double()
        .eval()
    )


def pair():
    torch.manual_seed(2)
    model = qkv.create("transformer-nano", vocab=V, dim=32, layers=2, heads=2, length=24, hidden=64, scaled=False).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn_like(p))
    return model


def scores(model, prompt, written):
    """Log probabilities of the next token, by a plain forward."""
    with torch.no_grad():
        if hasattr(model, "encode"):
            ids = torch.tensor([[model.config.start, *written]])
            return model(input_ids=torch.tensor([prompt]), decoder_input_ids=ids)["logits"][0, -1].log_softmax(-1)
        return model(input_ids=torch.tensor([[*prompt, *written]]))["logits"][0, -1].log_softmax(-1)


@pytest.mark.parametrize(
    "make", (decoder, pair, lambda: decoder(position="rope", pattern="sliding(3)", kv_heads=1), lambda: decoder(position="alibi"))
)
def test_greedy_equals_the_plain_forward(make):
    model = make()
    prompts = [[3, 4, 5, 6, 7], [8], [9, 10]]
    for prompt, answer in zip(prompts, generate(model, prompts, most=10)):
        plain = []
        while len(plain) < 10:
            best = scores(model, prompt, plain).argmax().item()
            if best == model.config.eos:
                break
            plain.append(best)
        assert answer == plain


def exhaustive(model, prompt, length, penalty, end):
    """The best of all sequences up to `length`, by log probability / length ** penalty."""
    best = (-float("inf"), None)

    def walk(written, total):
        nonlocal best
        logp = scores(model, prompt, written)
        for t in range(V):
            s = total + logp[t].item()
            if t == end:
                best = max(best, (s / (len(written) + 1) ** penalty, written))
            elif len(written) + 1 == length:
                best = max(best, (s / length**penalty, [*written, t]))
            else:
                walk([*written, t], s)

    walk([], 0.0)
    return best


@pytest.mark.parametrize("make", (decoder, pair))
@pytest.mark.parametrize("penalty", (0.0, 1.0))
def test_a_wide_beam_finds_the_best_of_all(make, penalty):
    model = make()
    prompts = [[3, 4, 5], [8]]
    found, values = beam_search(model, prompts, V * V, most=3, penalty=penalty)
    for prompt, ids, value in zip(prompts, found, values):
        best, want = exhaustive(model, prompt, 3, penalty, 2)
        assert ids == want and value == pytest.approx(best, abs=1e-5)


def test_beam_with_and_without_cache_and_in_batches():
    for model in (decoder(), pair()):
        prompts = [[3, 4, 5, 6], [8], [9, 10]]
        together = beam_search(model, prompts, 4, most=8)
        assert together[0] == beam_search(model, prompts, 4, most=8, cached=False)[0]
        assert together[0] == [beam_search(model, [p], 4, most=8)[0][0] for p in prompts]
        assert beam_search(model, prompts, 1, most=8)[0] == generate(model, prompts, most=8)


def test_sampling_draws_from_the_named_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]]).repeat(20000, 1)
    seen = torch.full((20000, 1), -1)

    def share(**kw):
        g = torch.Generator().manual_seed(0)
        return torch.bincount(Sampling(**kw).choose(logits, seen, g), minlength=5) / 20000

    p = (logits[0] / 0.7).softmax(-1)
    assert (share(temperature=0.7) - p).abs().max() < 0.015
    assert (share(temperature=0.7, top_k=2)[:2] - p[:2] / p[:2].sum()).abs().max() < 0.015
    q = logits[0].softmax(-1)  # .61, .22, .14: the fewest that hold 0.7 are two
    assert share(temperature=1.0, top_p=0.7)[2:].sum() == 0 and (share(temperature=1.0, top_p=0.7)[0] - q[0] / q[:2].sum()).abs() < 0.015
    assert share(temperature=1.0, top_p=1e-9)[0] == 1


def test_repetition_and_seeds():
    model = decoder()
    plain = generate(model, [[3]], most=12, end=())[0]
    other = generate(model, [[3]], Sampling(repetition=50.0), most=12, end=())[0]
    assert len(set(other)) == 12 and len(set(plain)) < 12
    draw = lambda seed: generate(model, [[3]], Sampling(temperature=1.0, seed=seed), most=12, end=())[0]
    assert draw(1) == draw(1) != draw(2)


def test_what_means_nothing_is_refused():
    for kw in ({"temperature": -1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"repetition": 0}):
        with pytest.raises(ValueError, match=next(iter(kw))):
            Sampling(**kw)
    model = decoder()
    with pytest.raises(ValueError, match="25 tokens and the model's context is 24; shorten it by 1"):
        generate(model, [[3] * 25])
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate(model, [[]])
    with pytest.raises(ValueError, match="beams=0"):
        beam_search(model, [[3]], 0)
    assert len(generate(model, [[3] * 20], most=50, end=())[0]) == 5  # up to the last position and one token beyond it


def test_prompts_continue_what_is_written_already():
    model = pair()
    whole = generate(model, [[3, 4]], most=6, end=())[0]
    rest = generate(model, [[3, 4]], most=3, end=(), prefixes=[[model.config.start, *whole[:3]]])[0]
    assert rest == whole[3:]


def test_streaming_stop_strings_and_characters():
    tokenizer = tokenizers.train("bpe", ["héé 😀 stop here now " * 20], 270)
    model = decoder(vocab=len(tokenizer), eos=tokenizer.eos, length=200)
    sampling = Sampling(temperature=1.5, seed=4)
    pieces = list(stream(model, tokenizer, "h", sampling, most=60))
    whole = complete(model, tokenizer, ["h"], sampling, most=60)[0]
    assert "".join(pieces) == whole and len(pieces) > 5
    stop = whole[10:13]
    cut = "".join(stream(model, tokenizer, "h", sampling, most=60, stop=(stop,)))
    assert cut == whole[: whole.index(stop)] == complete(model, tokenizer, ["h"], sampling, most=60, stop=(stop,))[0]


def test_prefixes_of_unequal_lengths_equal_each_alone():
    model = pair()
    start, sources = model.config.start, [[3, 4, 5], [6, 7], [8]]
    prefixes = [[start], [start, 9, 10, 11], [start, 12]]
    together = generate(model, sources, most=6, end=(), prefixes=prefixes)
    for source, prefix, answer in zip(sources, prefixes, together):
        assert generate(model, [source], most=6, end=(), prefixes=[prefix], cached=False) == [answer]


def test_several_ends_and_a_start_that_is_padding():
    model = decoder(eos=(2, 7))
    plain = generate(model, [[3]], most=20, end=())[0]
    assert any(t in (2, 7) for t in plain) or generate(model, [[3]], most=20)[0] == plain
    for token in plain[:3]:
        assert generate(model, [[3]], most=20, end=(token, 99))[0] == plain[: plain.index(token)]
    t5 = qkv.create("t5-nano", vocab=V, dim=32, heads=2, head_dim=16, hidden=32, pad=0, start=0, eos=1).double()
    assert 0 not in generate(t5, [[3, 4]], Sampling(temperature=5.0), most=15, end=())[0]


def test_half_characters_wait():
    class Bytes:
        eos = None

        def prompt(self, text):
            return [1]

        def decode(self, ids, special=False):
            whole = "😀é".encode()
            return whole[: len(ids)].decode(errors="replace") if len(ids) <= len(whole) else "😀é"

    pieces = list(stream(decoder(), Bytes(), "x", most=6))
    assert "".join(pieces) == "😀é" and all("\ufffd" not in p for p in pieces)


def test_steps_leave_the_model_as_it_was():
    model = decoder().train()
    for _ in itertools.islice(steps(model, [[3]], most=5), 2):
        pass
    list(steps(model, [[3]], most=2))
    assert model.training


def test_a_continuation_keeps_the_space_that_it_begins_with():
    from qkv.generation.text import said

    tok = tokenizers.train("unigram", ["once upon a time there was a dog " * 30], 60)
    model, before, after = decoder(), tok.encode("once"), tok.encode("upon a time")
    assert tok.decode(after) == "upon a time" and said(model, tok, before, after) == " upon a time"
    assert said(model, tok, [], after) == said(pair(), tok, before, after) == "upon a time"


def test_decoding_allocates_its_cache_once():
    model = decoder()
    state = Decoding(model, [[3, 4]], room=10)
    buffers = {k: v[0].data_ptr() for k, v in state.cache.kv.items()}
    for t in range(10):
        state.push(torch.tensor([t]))
    assert state.cache.capacity == 12 and {k: v[0].data_ptr() for k, v in state.cache.kv.items()} == buffers
    assert state.cache.nbytes() == 2 * 2 * 12 * 32 * 8  # k and v, layers, places, width, float64


def test_real_stories_continue_as_documented(shared):
    from qkv.models import convert

    folder = shared / "weights/stories260K"
    model = convert.llama2c(folder / "stories260K.bin")
    tokenizer = tokenizers.from_pieces(convert.llama2c_pieces(folder / "tok512.bin", 512))
    want = " ".join((shared / "README.md").read_text().split("expects:\n\n> ")[1].split("\n")[0].split(" (newline) ")).split()
    ids = generate(model, [[1]], most=200, end=())[0]
    assert len(ids) == 200 and tokenizer.decode(ids).split() == want and len(want) == 99
    assert sum(p.numel() for p in model.parameters()) == 260_032


def test_real_transliteration_answers_as_documented(shared):
    from qkv.models import convert

    folder = shared / "weights/aren_transliteration"
    model = convert.ctranslate2(folder)
    source, target = ((folder / f"{s}_vocabulary.txt").read_text(encoding="utf-8").split("\n") for s in ("source", "target"))
    ids = [source.index(c) for c in "آتزمون"]
    assert [target[i] for i in generate(model, [ids], most=20)[0]] == list("atzmon")
    _, (score,) = beam_search(model, [ids], 1, penalty=0.0)
    assert score == pytest.approx(-1.062, abs=1e-3)


def lowered(model):
    low = native.lower_if(model.float(), "fp32", 24)
    assert low is not None
    return low


def reaches(prompts, context=24):
    """Tokens that each prompt has room for: the last one is chosen from scores at the last position, and is not read."""
    return [context + 1 - len(p) for p in prompts]


@pytest.mark.parametrize("form", ["plain", "lowered", "uncached"])
@pytest.mark.parametrize("make", (decoder, pair))
def test_each_row_of_a_batch_goes_to_its_own_end_of_the_context(make, form):
    model = make()
    prompts = [[3, 4, 5, 6, 7, 8, 9] * 3, [8], [9, 10]]
    if form == "lowered":
        model = lowered(model)
    options = {"cached": False} if form == "uncached" else {}
    together = generate(model, prompts, most=60, end=(), **options)
    written = [1] * 3 if make is pair else map(len, prompts)
    assert [len(r) for r in together] == [24 + 1 - n for n in written]
    assert together == [generate(model, [p], most=60, end=(), **options)[0] for p in prompts]


@pytest.mark.parametrize("form", [lambda m: m, lowered], ids=["plain", "lowered"])
def test_each_row_of_a_beam_goes_to_its_own_end_of_the_context(form):
    model = form(decoder())
    prompts = [[3, 4, 5, 6, 7, 8, 9] * 3, [8], [9, 10]]
    together, values = beam_search(model, prompts, 3, most=60, end=())
    assert [len(r) for r in together] == reaches(prompts)
    for prompt, ids, value in zip(prompts, together, values):
        (alone,), (score,) = beam_search(model, [prompt], 3, most=60, end=())
        assert alone == ids and score == pytest.approx(value, abs=1e-5)


def slid(model, prompt, most, context=24):
    """By hand: token by token; where the context is full, from its last half on."""
    text, out = list(prompt), []
    while len(out) < most:
        out.append(scores(model, text, []).argmax().item())
        text.append(out[-1])
        if len(text) > context:
            text = text[-(context // 2) :]
    return out


@pytest.mark.parametrize("form", [lambda m: m, lowered], ids=["plain", "lowered"])
def test_a_text_slides_on_behind_a_full_context(form):
    model = decoder().float()
    prompts = [[3, 4, 5, 6, 7, 8, 9] * 3, [8], [9, 10]]
    wanted = [slid(model, p, 70) for p in prompts]
    assert generate(form(model), prompts, most=70, end=(), beyond=slide) == wanted
    assert generate(form(model), prompts[1:2], most=70, end=(), beyond=slide) == wanted[1:2]


def test_a_row_that_has_ended_stays_so_while_others_slide():
    model = decoder()
    prompts = [[3, 4, 5, 6, 7, 8, 9] * 3, [8], [9, 10]]
    whole = generate(model, prompts, most=70, end=(), beyond=slide)
    end = whole[1][5]
    cut = lambda row: row[: row.index(end)] if end in row else row
    assert generate(model, prompts, most=70, end=end, beyond=slide) == [cut(r) for r in whole]


def test_guessing_slides_as_the_plain_way_does():
    tokenizer = tokenizers.train("char", ["abcdefgh " * 20], 64)
    model = decoder(vocab=len(tokenizer), eos=None)
    plain = "".join(stream(model, tokenizer, "abc", most=90, beyond=slide))
    assert "".join(stream(model, tokenizer, "abc", most=90, guess=4, beyond=slide)) == plain
    assert len(tokenizer.encode(plain)) <= 90 < len("".join(stream(model, tokenizer, "abc", most=400, beyond=slide)))
    assert len("".join(stream(model, tokenizer, "abc", most=90))) < 30


def test_the_command_says_that_the_context_is_full(tmp_path, capsys):
    from qkv.cli.main import main

    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 40)
    words = ["tokenizer=char", "steps=60", "lr=1e-2", "length=16", "dim=16", "layers=1", "heads=2", "--quiet"]
    assert main(["train", "gpt-nano", f"data={tmp_path / 'a.txt'}", *words]) == 0
    capsys.readouterr()
    for more in ([], ["guess=3"], ["and"], ["precision=int8"]):
        assert main(["generate", "last", "the", *more, "tokens=60", "temperature=0"]) == 0
        told = capsys.readouterr()
        assert told.err.count("the context of 16 tokens is full; what follows goes by the last 8 alone") == 1
        assert len(told.out) > 30
    for more in (["beams=2"], ["and", "beams=2"]):
        assert main(["generate", "last", "the", *more, "tokens=60"]) == 0
        assert capsys.readouterr().err.count("the context of 16 tokens is full; the answer ends there") == 1
    assert main(["generate", "last", "the", "tokens=3"]) == 0
    assert "is full" not in capsys.readouterr().err
