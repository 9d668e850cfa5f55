"""Equal to what is published: every case and size where QKV_PARITY names them, and every file goes there and back."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch

import qkv
from qkv import models

PARITY = Path(os.environ.get("QKV_PARITY", ""))
given = pytest.mark.skipif("QKV_PARITY" not in os.environ, reason="QKV_PARITY names no folder of cases")
CASES = sorted(p.parent for p in (PARITY / "open").rglob("case.json")) if "QKV_PARITY" in os.environ else []
SIZES = json.loads((PARITY / "param_counts.json").read_text()) if "QKV_PARITY" in os.environ else {}


@pytest.fixture(scope="module")
def check():
    """The folder's own checker, loaded once."""
    sys.path.insert(0, str(PARITY))
    try:
        spec = importlib.util.spec_from_file_location("parity_check", PARITY / "check.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(PARITY))
    return module


@given
def test_there_are_cases_and_sizes():
    assert CASES and SIZES, f"QKV_PARITY={PARITY} holds no cases"


@pytest.mark.parametrize("folder", [pytest.param(f, id=f.name, marks=given) for f in CASES])
def test_a_published_case_is_equal(folder, check):
    found = check.run_case(qkv, str(folder))
    assert (found["status"], found["note"]) == ("equal", "")


@pytest.mark.parametrize("name", [pytest.param(n, marks=given) for n in SIZES])
def test_a_published_size_is_equal(name):
    size = SIZES[name]
    with torch.device("meta"):
        model = qkv.create(size["class"], **size["config"])
    assert sum(p.numel() for p in model.parameters()) == size["params"]


PRESETS = {name: models.preset(name) for name in models.presets()}
SMALL = [n for n, cfg in PRESETS.items() if cfg.vocab * cfg.dim + 12 * cfg.layers * cfg.dim**2 < 3_000_000]


@pytest.mark.parametrize("name", SMALL)
def test_what_is_saved_is_loaded(name, tmp_path):
    """Everything that a file must hold is in it, and nothing else is asked for."""
    model = qkv.create(name)
    qkv.save(model, tmp_path / "m")
    again = qkv.load(tmp_path / "m")
    before, after = model.state_dict(), again.state_dict()
    assert again.config == model.config and list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_every_topology_has_a_small_preset():
    """So that the test above leaves none out."""
    assert {type(PRESETS[name]) for name in SMALL} == {type(cfg) for cfg in PRESETS.values()}
