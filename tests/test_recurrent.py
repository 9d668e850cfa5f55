"""Recurrent networks: three forms of output, a fixed vector, the first attention, and the commands they share with every Transformer."""

import pytest
import torch
from reference import shaken

from qkv import models
from qkv.cli.main import main
from qkv.core.kernels import Additive
from qkv.generation import generate
from qkv.generation.beam import beam_search
from qkv.generation.decoding import Decoding
from qkv.generation.engine import Engine, NGram
from qkv.interpret import alignment
from qkv.models import account
from qkv.training import folder

SMALL = {"vocab": 50, "dim": 32, "length": 40, "dropout": 0.0, "bos": 1, "start": 1, "eos": 2, "pad": 0}
PAIRS = [{}, {"cell": "rnn"}, {"cell": "lstm", "layers": 2}, {"kernel": "softmax", "heads": 4}, {"kernel": "none"}, {"encoder_pattern": "causal", "reverse": True},
         {"reverse": True, "cell": "lstm"}]  # fmt: skip


def pair(**more):
    return shaken(models.create("bahdanau-nano", **SMALL | more), 0.3)


def test_additive_attention_is_its_formula():
    torch.manual_seed(0)
    model = pair(heads=2).double()
    a = model.cross
    memory, s = torch.randn(2, 5, 64).double(), torch.randn(2, 3, 32).double()
    from qkv.core import Context, tokens

    there = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    out = a(s, Context(tokens(3), memory, tokens(5, valid=there)))
    for b in range(2):
        for t in range(3):
            found = []
            for h in range(2):
                own = slice(16 * h, 16 * h + 16)
                k, v, q = a.k(memory[b])[:, own], a.v(memory[b])[:, own], a.q(s[b, t])[own]
                e = torch.stack([a.kernel.weight[h] @ torch.tanh(q + k[j]) for j in range(5) if there[b, j]])
                found.append((e.softmax(0)[:, None] * v[: len(e)]).sum(0))
            torch.testing.assert_close(out[b, t], a.o(torch.cat(found)), atol=1e-12, rtol=0)


@torch.no_grad()
def test_each_step_looks_by_the_state_before_it():
    """The pass over a whole text equals a loop that is written out."""
    model = pair()
    x, y = torch.tensor([[5, 6, 7, 2]]), torch.tensor([[1, 9, 8]])
    out = model(input_ids=x, decoder_input_ids=y)
    memory, toks = model.encode(x)
    state, said = model.began(memory, toks), []
    torch.testing.assert_close(state[0], torch.tanh(model.bridge(torch.cat([memory[:, -1, :32], memory[:, 0, 32:]], -1))))
    a, w = model.cross, model.cross.kernel.weight[0]
    for t in range(3):
        e = torch.tanh(a.q(state[-1])[:, None] + a.k(memory)) @ w
        c = a.o((e.softmax(-1)[..., None] * a.v(memory)).sum(1))
        token = model.decoder_embed.token.weight[y[:, t]]
        _, state = model.decoder(torch.cat([token, c], -1)[:, None], state)
        r = model.readout(torch.cat([state[-1], token, c], -1))
        said.append(torch.maximum(r[:, 0::2], r[:, 1::2]))
    torch.testing.assert_close(out["hidden"], torch.stack(said, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("more", PAIRS, ids=str)
def test_pairs_are_written_the_same_alone_cached_and_in_a_batch(more):
    model, prompts = pair(**more).double(), [[5, 6, 7, 8, 2], [8, 9, 2], [4, 2]]
    rows = generate(model, prompts, most=12)
    assert rows == generate(model, prompts, most=12, cached=False) == [generate(model, [p], most=12)[0] for p in prompts]
    beams = beam_search(model, prompts, 3, most=8)[0]
    assert beams == [beam_search(model, [p], 3, most=8, cached=False)[0][0] for p in prompts]
    begun = [
        Decoding(model, prompts, prefixes=[[1, 7], [1], [1, 4, 4]]).logits,
        *(Decoding(model, [p], prefixes=[f]).logits for p, f in zip(prompts, [[1, 7], [1], [1, 4, 4]])),
    ]
    torch.testing.assert_close(begun[0], torch.cat(begun[1:]), atol=1e-10, rtol=0)
    assert Engine(model, rows=2).generate(prompts, most=12) == rows


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_texts_go_on_the_same_alone_cached_and_in_a_batch(cell):
    model, prompts = shaken(models.create("gru-nano", **SMALL, cell=cell, layers=2), 0.3), [[5, 6, 7], [8, 9], [4], [5, 6, 7, 9]]
    rows = generate(model, prompts, most=9)
    assert rows == generate(model, prompts, most=9, cached=False) == [generate(model, [p], most=9)[0] for p in prompts]
    assert Engine(model, rows=2).generate(prompts, most=9) == rows
    again = [[5, 6, 7], [5, 6, 7, 9]]
    assert Engine(model, rows=1).generate(again, most=9) == [rows[0], rows[3]]  # what was read for the first is not cut and read on from
    with pytest.raises(ValueError, match="cannot take back a token"):
        Engine(model, rows=2, guesser=NGram(2))


@pytest.mark.parametrize("pattern", ["causal", "full"])
@torch.no_grad()
def test_padding_changes_nothing_and_both_sides_are_read(pattern):
    model = shaken(models.create("lstm-nano", **SMALL, pattern=pattern, output="sequence"), 0.3)
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    out, alone = model(ids, mask), model(ids[1:, :2])
    torch.testing.assert_close(out["logits"][1:], alone["logits"], atol=1e-6, rtol=0)
    torch.testing.assert_close(out["hidden"][1:, :2], alone["hidden"], atol=1e-6, rtol=0)
    later = model(torch.tensor([[5, 6, 7, 3]]))["hidden"][0, 1]
    assert torch.allclose(later, out["hidden"][0, 1], atol=1e-6) is (pattern == "causal")
    if pattern == "causal":
        left = model(torch.tensor([[0, 0, 9, 4]]), torch.tensor([[0, 0, 1, 1]]))
        torch.testing.assert_close(left["logits"], alone["logits"], atol=1e-6, rtol=0)


def test_gates_begin_open_and_states_keep_their_length():
    cells = models.create("lstm-nano", **SMALL).cells
    for gate in cells.weight_hh_l0.split(32):
        torch.testing.assert_close(gate @ gate.T, torch.eye(32), atol=1e-5, rtol=0)
    assert (cells.bias_ih_l0 + cells.bias_hh_l0).split(32)[1].eq(1).all() and cells.bias_ih_l0.sum() == 32


def test_what_cannot_be_is_said():
    for more, message in (
        ({"pattern": "full"}, "would see the very token"),
        ({"position": "rope"}, "knows the order"),
        ({"cell": "lstn"}, "is not one of"),
        ({"kernel": "additive"}, "has no kernel"),
    ):
        with pytest.raises(ValueError, match=message):
            models.create("lstm-nano", **more)
    with pytest.raises(ValueError, match="is not one of"):
        models.create("bahdanau-nano", kernel="addtive")
    with pytest.raises(ValueError, match=r"across=true"):
        models.create("lstm-nano", **SMALL)(torch.tensor([[3, 4]]), documents=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="has no cross-attention"):
        alignment(pair(kernel="none"), [3, 2], [4])
    assert account.flops(models.create("lstm-nano", **SMALL))["recurrence"] == 2 * 4 * 32 * 64


def test_one_flag_makes_the_first_attention_of_a_fixed_vector_and_learns(tmp_path, capsys):
    """`copy` is learnt with attention in few steps; the same command with kernel=none, and a Transformer, run; what was looked at lies on the diagonal."""
    words = [
        "data=task:copy",
        "count=2000",
        "tokenizer=char",
        "threads=1",
        "precision=exact",
        "tokens=1024",
        "dim=64",
        "dropout=0",
        "warmup=10",
        "eval_every=100",
    ]
    assert main(["train", "bahdanau-nano", *words, "steps=250", "lr=1e-2"]) == 0
    run = folder.find("last")
    loss = [m["valid_loss"] for m in folder.read_metrics(run / "metrics.jsonl") if "valid_loss" in m]
    assert loss[-1] < 0.2 < loss[0]
    capsys.readouterr()
    assert main(["generate", str(run), "abcdefgh", f"picture={tmp_path / 'a.png'}"]) == 0
    assert capsys.readouterr().out.startswith("abcdefgh") and (tmp_path / "a.png").stat().st_size > 5000
    model, tokenizer = models.load(sorted((run / "checkpoints").iterdir())[-1]), None
    from qkv.data import tokenizer as tokenizers

    tokenizer = tokenizers.load(sorted((run / "checkpoints").iterdir())[-1])
    ids = tokenizer.encode("lkjhgfd")
    assert alignment(model, [*ids, tokenizer.eos], ids).argmax(1).sub(torch.arange(7)).abs().float().mean() <= 1
    assert main(["train", "bahdanau-nano", "kernel=none", *words, "steps=3"]) == 0
    assert main(["train", "transformer-nano", *words, "steps=3"]) == 0


@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_one_output_at_the_end_and_one_a_token(task, tmp_path):
    """A recurrent network reads labelled texts by the same command: is the first letter an a? Which letters follow an a?"""
    r = torch.Generator().manual_seed(0)
    words = ["".join("abc"[i] for i in torch.randint(0, 3, (6,), generator=r)) for _ in range(400)]
    if task == "classification":
        (tmp_path / "x.tsv").write_text("text\tlabel\n" + "".join(f"{w}\t{'yes' if w[0] == 'a' else 'no'}\n" for w in words))
        more = [f"data={tmp_path / 'x.tsv'}"]
    else:
        tag = lambda w, i: "B-X" if i and w[i - 1] == "a" else "O"
        (tmp_path / "x.conll").write_text("".join("".join(f"{c}\t{tag(w, i)}\n" for i, c in enumerate(w)) + "\n" for w in words))
        more = [f"data={tmp_path / 'x.conll'}", "pattern=full"]
    given = [
        "tokenizer=char",
        "dim=32",
        "length=32",
        "dropout=0",
        "threads=1",
        "batch=32",
        "epochs=12",
        "lr=1e-2",
        "warmup=5",
        "holdout=0.2",
    ]
    assert main(["train", "lstm-nano", f"task={task}", *more, *given]) == 0
    held = [m for m in folder.read_metrics(folder.find("last") / "metrics.jsonl") if "valid_loss" in m]
    key = "valid_accuracy" if task == "classification" else "valid_f1"
    assert held[-1][key] > 0.9 > held[0][key]


def test_a_language_model_learns_and_writes(tmp_path, capsys):
    (tmp_path / "x.txt").write_text("abcabcabc " * 400)
    assert (
        main(
            [
                "train",
                "gru-nano",
                f"data={tmp_path / 'x.txt'}",
                "tokenizer=char",
                "dim=32",
                "length=32",
                "threads=1",
                "steps=60",
                "lr=1e-2",
                "warmup=5",
                "dropout=0",
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert main(["generate", "last", "abca", "tokens=8", "temperature=0"]) == 0
    assert capsys.readouterr().out.startswith("abcabcabc")


def test_the_kernel_serves_a_transformer_too():
    model = models.create("gpt-nano", vocab=50, dim=32, heads=2, layers=1, length=16, kernel="additive", pattern="causal").eval()
    assert isinstance(model.blocks[0].attn.f.kernel, Additive)
    ids = torch.randint(0, 50, (1, 9))
    whole, part = model(ids)["logits"], model(ids[:, :5])["logits"]
    torch.testing.assert_close(whole[:, :5], part, atol=1e-5, rtol=0)
