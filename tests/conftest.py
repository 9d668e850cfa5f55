import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def threads():
    torch.set_num_threads(1)  # two threads on a busy machine wait for each other


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """Every test has its own runs, cache and seed."""
    monkeypatch.setenv("QKV_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


@pytest.fixture
def shared():
    """The folder of real data sets, where QKV_DATA names one."""
    folder = os.environ.get("QKV_DATA")
    if not folder:
        pytest.skip("QKV_DATA names no folder of real data sets")
    from pathlib import Path

    return Path(folder)
