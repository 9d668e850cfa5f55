"""The command line, as a person meets it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qkv.cli.main import main
from qkv.training import folder

TEXT = "".join(f"line {i}: {i * i} is the square of {i}.\n" for i in range(400))
SMALL = ("dim=32", "layers=2", "heads=2", "length=16", "batch=4", "threads=1", "precision=exact", "sample_tokens=4", "warmup=2")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    return str(tmp_path / "t.txt")


def qkv(*words):
    return main([str(w) for w in words])


def trained(source, *words):
    assert qkv("train", "gpt-nano", f"data={source}", "tokenizer=char", "steps=5", *SMALL, *words) == 0
    return folder.find("last")


def test_help_answers_without_torch():
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-X", "importtime", "-m", "qkv", "--help"], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0 and "usage: qkv VERB WHAT" in out.stdout and time.perf_counter() - start < 30
    assert " torch" not in out.stderr and "rich" not in out.stderr
    for verb in ("train", "show", "ls", "generate", "chat", "eval", "convert", "embed", "bench", "cost", "compare"):
        out = subprocess.run([sys.executable, "-X", "importtime", "-m", "qkv", verb, "--help"], capture_output=True, text=True, timeout=60)
        assert out.returncode == 0 and f"qkv {verb}" in out.stdout and " torch" not in out.stderr


def test_train_generate_eval_convert(source, tmp_path, capsys):
    run = trained(source)
    out = capsys.readouterr().out
    assert "held-out loss" in out and "(untrained:" in out and f"qkv train {run} steps=10" in out
    assert qkv("generate", "last", "line 3", "tokens=8", "temperature=0") == 0
    assert capsys.readouterr().out.startswith("line 3")
    assert qkv("generate", "last", "line", "is", "tokens=4", "beams=2") == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert qkv("eval", "last", source) == 0
    assert {x.split()[0] for x in capsys.readouterr().out.splitlines()} == {"loss", "perplexity", "accuracy", "bits"}
    assert qkv("convert", "last", tmp_path / "out") == 0 and (tmp_path / "out/tokenizer.json").exists()
    assert qkv("eval", tmp_path / "out", source) == 0 and qkv("convert", "last", tmp_path / "out") == 2
    (tmp_path / "out/mine.txt").write_text("keep me")
    assert qkv("convert", "last", tmp_path / "out", "--force") == 0 and (tmp_path / "out/mine.txt").read_text() == "keep me"
    assert qkv("ls", "runs") == 0 and "gpt-nano" in capsys.readouterr().out and folder.runs() == [run]


def test_precisions_guesses_and_profile_from_the_command_line(source, capsys):
    trained(source, "--profile", "--quiet", "steps=9")
    out = capsys.readouterr().out
    assert "where the time went (4 steps" in out and "(MFU)" in out
    answers = []
    for words in ((), ("guess=3",), ("precision=int8",)):
        assert qkv("generate", "last", "line 3", "tokens=8", "temperature=0", *words) == 0
        captured = capsys.readouterr()
        answers.append(captured.out)
    assert answers[0] == answers[1] and "weights in int8" in captured.err and "rounded by" in captured.err


def test_embed_from_the_command_line(source, tmp_path, capsys):
    import numpy as np

    assert qkv("train", "bert-nano", f"data={source}", "steps=2", "vocab=200", "hidden=64", *SMALL) == 0
    capsys.readouterr()
    assert qkv("embed", "last", "line 3", "line 4", "square") == 0
    assert "cosine" in capsys.readouterr().out
    (tmp_path / "s.txt").write_text("line 3\n\nthe square of 9 " + "9 " * 40 + "\n")
    assert qkv("embed", "last", tmp_path / "s.txt", f"out={tmp_path / 'v.npy'}", "precision=int8", "pool=cls", "normalize=true") == 0
    out = capsys.readouterr().out
    assert "1 of 2 texts have more than 16 tokens" in out and "2 vectors of 32 numbers" in out
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (2, 32) and np.allclose((vectors**2).sum(1), 1, atol=1e-5)


def test_pairs_from_the_command_line(capsys):
    words = ("dim=32", "hidden=32", "layers=1", "heads=2", "length=32", "threads=1", "count=300", "precision=exact", "sample_tokens=4")
    assert qkv("train", "transformer-nano", "data=task:date", "steps=4", *words) == 0
    assert qkv("generate", "last", "1 May 1999", "tokens=5") == 0
    capsys.readouterr()
    assert qkv("eval", "last", "limit=3") == 0
    assert "exact       0 of 3" in capsys.readouterr().out


def test_show_and_ls(capsys):
    assert qkv("show", "gpt2", "position=alibi", "kv_heads=2") == 0
    out = capsys.readouterr().out
    assert "111,841,536" in out and "ALiBi" in out and "2 key-value heads" in out and "KV cache: 6,144 bytes" in out
    assert qkv("show", "llama-3-8b") == 0 and "8,030,261,248" in capsys.readouterr().out
    assert qkv("show", "t5-small", "--fields") == 0 and "encoder_pattern" in capsys.readouterr().out
    assert qkv("ls") == 0 and "bert-nano" in capsys.readouterr().out


def test_any_slot_trains(source):
    slots = (("position=rope", "norm=rms", "ffn=gated(silu)", "kv_heads=1"), ("position=alibi", "pattern=sliding(5)", "order=parallel"),
             ("position=t5", "order=post", "final_norm=false"), ("position=sinusoid", 'pattern=["causal","sliding(4)"]', "embed_norm=true"),
             ("position=none", 'ffn=["plain(relu)","gated(gelu)"]', "order=out", "tie=false"))  # fmt: skip
    for words in slots:
        trained(source, "--quiet", *words)
        assert qkv("generate", "last", "line", "tokens=3") == 0


def test_resuming_keeps_the_run_whole(source, capsys):
    run = trained(source)
    before = (run / "recipe.toml").read_text()
    for words in (("lr=nan",), ("device=tpu",), ("steps=abc",), ("dim=64",), ("optimizer=muon",), ("steps=-1",)):
        assert qkv("train", "last", *words) == 2
        assert (run / "recipe.toml").read_text() == before
    with folder.locked(run):
        assert qkv("train", "last", "steps=9") == 2 and (run / "recipe.toml").read_text() == before
    assert "another process is training" in capsys.readouterr().err
    assert qkv("train", "last", "steps=7") == 0
    assert [x["step"] for x in folder.read_metrics(run / "metrics.jsonl") if "loss" in x] == list(range(1, 8))


BAD = {
    "there is no verb 'trian'. Did you mean 'train'": ("trian",),
    "'gpt-nan' is no preset, recipe or run. Did you mean 'gpt-nano'": ("train", "gpt-nan"),
    "there is no key 'stps'. Did you mean 'steps'": ("train", "gpt-nano", "stps=3"),
    "train.steps='abc': must be a whole number": ("train", "gpt-nano", "steps=abc"),
    "train.batch=0: must be greater than 0": ("train", "gpt-nano", "batch=0"),
    "this process may use": ("train", "gpt-nano", "threads=9999"),
    "there is no flag --quite. Did you mean '--quiet'": ("train", "gpt-nano", "--quite"),
    "--ranks x: must be a whole number": ("train", "gpt-nano", "--ranks", "x"),
    "rope takes no 'bse'": ("train", "gpt-nano", "position=rope(bse=3)"),
    "window must be a whole number": ("train", "gpt-nano", "pattern=sliding(0)"),
    "needs window, e.g. sliding(window=128)": ("train", "gpt-nano", "pattern=sliding"),
    "scale must be a number above 0, not 'x'": ("train", "gpt-nano", "kernel=softmax(scale=x)"),
    "dim follows from the model": ("train", "gpt-nano", "position=learned(dim=3)"),
    "under the pattern 'full' a token sees the very tokens": ("train", "gpt-nano", "pattern=full"),
    "there is no file, folder or data set called 'nowhere.txt'": ("train", "gpt-nano", "data=nowhere.txt"),
    "data.source is empty": ("train", "gpt-nano", "data="),
    "train.device='tpu'": ("train", "gpt-nano", "device=tpu"),
    "needs the topology Encoder": ("train", "gpt-nano", "objective=masked"),
    "reads running text, not pairs": ("train", "bert-nano", "data=task:copy"),
    "there is no recipe absent.toml": ("train", "absent.toml"),
    "there is no run yet": ("generate", "last"),
    "is a preset without weights": ("generate", "gpt-nano"),
    "is no folder, and no hub id": ("eval", "nothing-here", "x.txt"),
    "there is no preset 'gpt5'": ("show", "gpt5"),
    "there is nothing called 'models' to list": ("ls", "models"),
    "temperature=-1": ("generate", "RUN", "hi", "temperature=-1"),
    "top_k=True: must be a whole number": ("generate", "RUN", "hi", "top_k=true"),
    "the prompt has 30 tokens and the model's context is 16; shorten it by 14": ("generate", "RUN", "x" * 30),
    "length=-1: must be a whole number": ("eval", "RUN", "length=-1"),
    "precision='fp8' is not one of fp32, bf16, int8, int4": ("generate", "RUN", "hi", "precision=fp8"),
    "threads=999: this process may use 1 to": ("generate", "RUN", "hi", "threads=999"),
    "guess='x': must be a whole number": ("generate", "RUN", "hi", "guess=x"),
    "train.precision='fp8': must be one of auto, exact, fast, bf16": ("train", "gpt-nano", "precision=fp8"),
    "a step needs about": ("train", "gpt2-xl", "batch=100000", "data=pydoc"),
    "a decoder reads only backwards": ("embed", "RUN", "hi", "ho"),
    "name an encoder and texts": ("embed", "RUN"),
    "threads=0: this process may use": ("bench", "threads=0"),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_words_get_one_paragraph(reason, source, capsys):
    if "RUN" in BAD[reason]:
        trained(source, "--quiet")
    words = [folder.find("last") if w == "RUN" else w for w in BAD[reason]]
    capsys.readouterr()
    assert qkv(*words) == 2
    captured = capsys.readouterr()
    assert reason in captured.err and "Traceback" not in captured.err and len(captured.err.strip().splitlines()) == 1
    assert "RUN" in BAD[reason] or not list(Path(os.environ["QKV_RUNS"]).glob("*"))


def test_a_short_text_an_empty_one_and_bad_bytes(tmp_path, capsys):
    for content, reason in ((b"tiny text", "fewer than the"), (b"", "is empty"), (b"abc \xff " * 50, "byte 0xff at offset 4")):
        (tmp_path / "f.txt").write_bytes(content)
        assert qkv("train", "gpt-nano", f"data={tmp_path / 'f.txt'}", "tokenizer=char", "steps=1", "threads=1") == 2
        assert reason in capsys.readouterr().err
    assert qkv("train", "gpt-nano", f"data={tmp_path / 'f.txt'}", "tokenizer=char", "errors=replace", "steps=1", *SMALL) == 0


def test_the_help_of_train_names_every_key():
    import dataclasses
    import re

    from qkv.cli.train import HELP
    from qkv.data import Data
    from qkv.training.recipe import Train

    said = set(re.findall(r"\w+", HELP))
    assert not [f.name for kind in (Data, Train) for f in dataclasses.fields(kind) if f.name not in said]
