"""The README is run: every command at a tiny size, in its order, in one folder; every Python block.

Rules, not a list: what trains takes two steps; files that a command names are made (tests/standins.py); RUN stands for
the newest run that fits; `make` lines give what they would run; a hub id, which cannot be fetched here, must be refused
with a sentence.
"""

import ast
import builtins
import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import standins

from qkv import models
from qkv.cli.main import VERBS, main
from qkv.training import folder, recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROLES = {"words": (models.Decoder,), "picture": (models.ImageEncoder, models.TwoTowers)}  # what parts begin from
SEPARATORS = {";", "&&"}


def sections() -> dict[str, list[tuple[str, str]]]:
    """{heading: [(language of a block, or `inline` of a command in the text, what is in it)]}, in order."""
    out, here = {}, ""
    pattern = r"^#+ (?P<heading>[^\n]+)$|^```(?P<kind>\w*)\n(?P<block>.*?)^```$|`(?P<inline>qkv [^`\n]+)`"
    for found in re.finditer(pattern, README, re.M | re.S):
        if found["heading"]:
            here = found["heading"]
        else:
            kind, text = ("inline", found["inline"]) if found["inline"] else (found["kind"], found["block"])
            out.setdefault(here, []).append((kind, text))
    return out


SECTIONS = sections()


def commands(text: str) -> list[list[str]]:
    """The words of every command of a shell block."""
    out = []
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in SEPARATORS:
                words.append(word)
            elif words:
                out, words = [*out, words], []
    return out


def tiny(words: list[str]) -> list[str]:
    """The command `qkv ...` at a small size: lengths and episodes are cut down, and where the verb has an end it comes soon."""
    verb, *rest = words
    if verb in ("cost", "compare"):  # lengths that are measured, not read
        shorter = lambda w: re.sub(r"\d+", lambda n: str(max(1, int(n[0]) // 16)), w)
        rest = [shorter(w) if w.startswith(("length=", "evaluate=")) else w for w in rest]
    rest = [re.sub(r"episodes=\d+", "episodes=2", w) for w in rest]
    if verb in ("train", "compare") and "--time" not in rest:
        again = verb == "train" and rest[:1] == ["last"]
        rest = [w for w in rest if w.partition("=")[0] not in ("steps", "seconds", "epochs")]
        return [
            verb,
            *rest,
            f"steps={4 if again else 2}",
            *(() if again else ("episodes=4", "count=200")),
            "eval_batches=1",
            "sample_tokens=2",
            "threads=1",
        ]
    known = getattr(importlib.import_module(f"qkv.cli.{'generate' if verb == 'chat' else verb}"), "KEYS", ())
    given = {w.partition("=")[0] for w in rest}
    ends = {"tokens": 8, "batches": 2, "limit": 4}
    return [verb, *rest, *(f"{k}={v}" for k, v in ends.items() if k in known and k not in given)]


def newest(fits) -> str:
    """The newest run whose recipe fits."""
    for where in folder.runs():
        if fits(recipe.resolve(recipe.load(where / "recipe.toml"))):
            return str(where)
    raise AssertionError("the README names a RUN before one was trained that fits")


def begins(part: str):
    """Whether a run's recipe makes what a part is begun from: a tower, or a language model."""
    kind = ROLES[part]
    return lambda r: isinstance(models.preset(r.model["preset"]), kind) and (part != "words" or not r.train.task)


def resolved(words: list[str]) -> list[str]:
    """The words with RUN as the run that fits its place, and every file that is named made."""
    out = []
    for word in words:
        for part in ROLES:
            if f"{part}=RUN" in word:
                word = word.replace(f"{part}=RUN", f"{part}={newest(begins(part))}")
        if word.endswith("=RUN"):  # it goes on from the same preset
            word = word.replace("RUN", newest(lambda r: r.model["preset"] == words[1]))
        key, _, value = word.rpartition("=")
        if key not in ("picture", "out"):  # those are written
            for name in re.findall(r"[\w/.-]+(?:\.\w+|/)(?=,|$)", value):
                standins.supply(Path(name), name)
        out.append(word)
    return out


def hub_id(words: list[str]) -> bool:
    return len(words) > 1 and bool(re.fullmatch(r"[\w-]+/[\w.-]+", words[1])) and not Path(words[1]).exists()


def run(words: list[str], capfd) -> str:
    """What is wrong with a command, or "" where it does what it should."""
    program, *rest = words
    if program == "make":
        plan = subprocess.run(["make", "-n", "-C", str(ROOT), *rest], capture_output=True, text=True)
        if plan.returncode:
            return plan.stderr
        would = re.findall(r"^\S*/qkv (.*)$", plan.stdout, re.M)
        return "".join(run(["qkv", *words], capfd) for line in would for words in commands(line))
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = [e for w in rest for e in re.findall(r"\[(.+)\]", w)]
        return "" if set(wanted) <= set(extras) else f"pyproject.toml has no extra {wanted}"
    if program == "python":
        compile((ROOT / rest[0]).read_text(), rest[0], "exec")
        return ""
    if program != "qkv":
        return "" if words == ["source", ".venv/bin/activate"] else "nothing here knows how to run this"
    if rest[0] not in VERBS:
        return f"there is no verb {rest[0]}"
    words, refused = resolved(rest), hub_id(rest)
    capfd.readouterr()
    try:
        status = main(tiny(words))
    except (Exception, SystemExit) as e:
        return f"{type(e).__name__}: {e}"
    said = "".join(capfd.readouterr())
    if refused:
        refusal = status == 2 and "the hub did not give it" in said
        return "" if refusal else f"a hub id was not refused with a sentence: {said[-500:]}"
    return "" if status == 0 else f"status {status}: {said[-800:]}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder in which the README is followed, with stand-ins for published data."""
    where = tmp_path_factory.mktemp("readme")
    standins.published(where / "published")
    return where


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("QKV_RUNS", str(place / "runs"))
    monkeypatch.setenv("QKV_CACHE", str(place / "cache"))
    monkeypatch.setenv("QKV_DATA", str(place / "published"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return place


def test_every_block_is_of_a_known_kind():
    assert {kind for blocks in SECTIONS.values() for kind, _ in blocks} <= {"sh", "python", "", "inline"}
    shell = [text for blocks in SECTIONS.values() for kind, text in blocks if kind == "sh"]
    assert len(commands("\n".join(shell))) > 50


@pytest.mark.slow
@pytest.mark.parametrize("heading", SECTIONS)
def test_what_the_readme_says_is_run(heading, here, capfd):
    """In the order of the README: `last` is what was trained before."""
    wrong = []
    for kind, text in SECTIONS[heading]:
        if kind in ("sh", "inline"):
            for words in commands(text):
                if problem := run(words, capfd):
                    wrong.append(f"{shlex.join(words)}\n    {problem}")
        elif kind == "python":
            execute(text, here)
        else:
            for asked, answer in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.M):
                capfd.readouterr()
                main(commands(asked)[0][1:])
                said = capfd.readouterr()
                assert (said.out + said.err) == answer, asked
    assert not wrong, "\n".join(wrong)


NAMES: dict = {}  # what Python blocks have made for those that follow


def execute(block: str, here: Path) -> None:
    """Runs a Python block; what it uses and does not make is what a reader has: a folder of a model, ids, a table."""
    if not Path("path/to/folder").exists():
        import qkv

        qkv.save(qkv.create("gpt-nano"), "path/to/folder")
    r = np.random.default_rng(0)
    columns = [r.normal(size=60), r.integers(0, 3, 60), r.normal(size=60), r.integers(0, 4, 60)]
    supplied = {"prompt_ids": [1, 2, 3], "X": np.stack(columns, 1), "y": r.integers(0, 2, 60)}
    tree = ast.parse(block)
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
    imported = [a for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names]
    made = {n.id for n in names if isinstance(n.ctx, ast.Store)} | {a.asname or a.name.partition(".")[0] for a in imported}
    unknown = {n.id for n in names} - made - set(dir(builtins)) - set(NAMES) - set(supplied)
    assert not unknown, f"a Python block of the README uses {unknown}, which nothing makes"
    NAMES.update(supplied)
    exec(compile(tree, "README.md", "exec"), NAMES)
