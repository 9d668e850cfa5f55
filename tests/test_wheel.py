"""What is published: wheel and sdist hold every file of the package, and work where the checkout is out of reach."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import qkv

ROOT = Path(__file__).resolve().parents[1]
BUILD = """
import sys
from setuptools import build_meta
out, *kinds = sys.argv[1:]
for kind in kinds:
    getattr(build_meta, f"build_{kind}")(out)
"""


def made(command: list, where: Path, **environment: str) -> str:
    """What a command prints; the test fails with all of it where the command does."""
    here = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "QKV"))} | environment
    plain = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run([str(w) for w in command], cwd=where, env=here, **plain)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def files_of(folder: Path) -> dict[str, bytes]:
    """{name below the folder: content} of what belongs to a package."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".pyc")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def unzipped(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as z:
        return {name: z.read(name) for name in z.namelist()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what the project is built from, with a file of a new kind, and what Python leaves behind."""
    where = tmp_path_factory.mktemp("tree")
    for name in ("qkv", "tests"):
        shutil.copytree(ROOT / name, where / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (p for p in ROOT.iterdir() if p.is_file()):
        shutil.copy(path, where)
    for name in ("qkv/native/of-its-own/new.kind", "qkv/native/__pycache__/kernels.cpython-311.pyc"):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text("new")
    return where


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    """(wheel, sdist) of the tree, without network."""
    out = tmp_path_factory.mktemp("dist")
    made([sys.executable, "-c", BUILD, out, "sdist", "wheel"], tree)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def again(built, tmp_path_factory):
    """(the unpacked sdist, the wheel that is built from it)."""
    where = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built[1]) as t:
        t.extractall(where, filter="data")
    (inside,) = where.iterdir()
    made([sys.executable, "-c", BUILD, where, "wheel"], inside)
    return inside, next(where.glob("*.whl"))


def test_every_file_of_the_package_is_in_the_wheel(tree, built):
    wanted = {f"qkv/{name}": content for name, content in files_of(tree / "qkv").items()}
    found = unzipped(built[0])
    assert {n: c for n, c in found.items() if not n.startswith("qkv-")} == wanted
    assert {Path(n).suffix for n in wanted} >= {".py", ".toml", ".cpp", ".kind"}
    licence = next(n for n in found if n.endswith("LICENSE"))
    assert found[licence] == (ROOT / "LICENSE").read_bytes() and b"the qkv authors" in found[licence]


def test_the_sdist_holds_the_package_its_tests_and_what_builds_the_same_wheel(tree, built, again):
    inside, wheel = again
    for part in ("qkv", "tests"):
        assert files_of(inside / part) == files_of(tree / part)
    assert all((inside / name).is_file() for name in ("LICENSE", "README.md", "pyproject.toml", "Makefile"))
    assert unzipped(wheel) == unzipped(built[0])


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The Python of an environment with the wheel, what it asks for, and the torch that these tests run on."""
    import torch

    where = tmp_path_factory.mktemp("clean")
    venv.create(where / "venv", with_pip=True)
    (where / "constraints.txt").write_text(f"torch=={torch.__version__}\n")
    python = where / "venv/bin/python"
    made([python, "-m", "pip", "install", "-q", "-c", where / "constraints.txt", built[0]], where)
    return python


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_an_installed_qkv_works_from_an_empty_folder(kind, built, installed, tmp_path):
    package = built[kind == "sdist"]
    made([installed, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", package], tmp_path)
    (empty := tmp_path / "empty").mkdir()
    (tmp_path / "other.txt").write_text("The meaning of a word is its use in the language.\n" * 30)
    home = {"HOME": str(installed.parents[2]), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    where = made([installed, "-I", "-c", "import qkv; print(qkv.__file__)"], empty, **home).strip()
    assert Path(where).is_relative_to(installed.parents[1]) and not Path(where).is_relative_to(ROOT)
    command = lambda *words: made([installed.with_name("qkv"), *words], empty, **home)
    listed = command("ls")
    assert all(p.stem in listed for p in (Path(qkv.__file__).parent / "recipes").glob("*.toml"))
    assert "held-out loss" in command("train", "steps=2", "eval_batches=1", "sample_tokens=2", "threads=1")
    assert command("generate", "last", "The meaning", "tokens=4").startswith("The meaning")
    assert "perplexity" in command("eval", "last", tmp_path / "other.txt")
    assert "parameters as" in command("convert", "last", "my-model")
    assert command("generate", "my-model", "The", "tokens=4", "precision=int8").startswith("The")
    assert {p.name for p in empty.iterdir()} == {"runs", "my-model"}
