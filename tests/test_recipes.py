"""Every recipe in the package takes two steps, on stand-ins, and on the real data where QKV_DATA names it."""

import os
import re
from pathlib import Path

import pytest
import standins

from qkv import models
from qkv.cli.main import main
from qkv.data import registry
from qkv.training import folder, recipe

RECIPES = recipe.shipped()
TINY = ("steps=2", "eval_batches=1", "sample_tokens=2", "threads=1", "episodes=8", "--plain")
REAL = Path(os.environ["QKV_DATA"]) if os.environ.get("QKV_DATA") else None


def asks(path: Path) -> dict[str, str]:
    """{key: file} of the arguments that a recipe's first lines ask for; a file may stand in a folder of QKV_DATA."""
    head = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    said = dict(re.findall(r"\b(data|valid|files)=([^\s:;,]+)", head))
    return {k: "noto_72x72.zip" if v.isupper() else v.removeprefix("PATH/") for k, v in said.items()}


def source_of(path: Path) -> str:
    return recipe.load(path)["data"].get("source", "")


PARTS = {"words": ("gpt-nano", "length=256"), "picture": ("vit-nano",)}  # of a model that is put together from runs


def two_steps(name, arguments):
    parts = {}
    for part in models.parts_of(models.preset(recipe.load(RECIPES[name])["model"]["preset"])):
        assert main(["train", *PARTS[part], *TINY]) == 0
        parts[part] = folder.find("last")
    if parts:
        arguments = [*arguments, "init=" + ",".join(f"{part}={run}" for part, run in parts.items())]
    assert main(["train", name, *arguments, *TINY]) == 0
    run = folder.find("last")
    assert [row["step"] for row in folder.read_metrics(run / "metrics.jsonl") if "loss" in row] == [1, 2]


def test_there_are_recipes_and_each_says_what_it_is():
    assert "quickstart" in RECIPES
    for name, path in RECIPES.items():
        assert path.read_text().startswith("# "), name
        assert recipe.resolve(recipe.load(path), name).name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_two_steps(name, tmp_path, monkeypatch):
    monkeypatch.setenv("QKV_DATA", str(tmp_path / "published"))
    for file in getattr(registry.PUBLISHED.get(source_of(RECIPES[name])), "files", {}).values():
        assert standins.supply(tmp_path / "published" / file.path, file.path)
    given = []
    for key, file in asks(RECIPES[name]).items():
        assert standins.supply(tmp_path / file), f"nothing is known of {file}; add it to tests/standins.py"
        given.append(f"{key}={tmp_path / file}")
    two_steps(name, given)


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="QKV_DATA names no folder of real data sets")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_two_steps_on_real_data(name):
    given = []
    for key, file in asks(RECIPES[name]).items():
        found = sorted(REAL.rglob(file))
        assert found, f"{REAL} holds no {file}"
        given.append(f"{key}={found[0]}")
    two_steps(name, given)


@pytest.mark.parametrize("name", [n for n, p in RECIPES.items() if source_of(p) in registry.PUBLISHED])
def test_without_network_and_data_a_recipe_says_what_it_needs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("QKV_DATA", raising=False)
    for key in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(key, "http://127.0.0.1:9")
    assert main(["train", name, *TINY]) == 2
    said = capsys.readouterr().err
    assert "is not here and https://" in said and "point QKV_DATA at a folder" in said
    assert not list(Path(os.environ["QKV_RUNS"]).glob("*"))


OWN = [n for n, p in RECIPES.items() if "data" in asks(p) and recipe.load(p)["train"].get("task")]


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_for_your_own_data_asks_for_it(name, capsys):
    assert main(["train", name, *TINY]) == 2
    said = capsys.readouterr().err
    assert said.startswith("qkv train: ") and "data" in said and len(said.splitlines()) == 1
    assert not list(Path(os.environ["QKV_RUNS"]).glob("*"))
