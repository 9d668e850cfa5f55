"""The rules of the house, read from the code itself."""

import ast
import re
import sys
from pathlib import Path

import qkv

ROOT = Path(qkv.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py"))
CORE = [p for p in FILES if (ROOT / "core") in p.parents]
BELOW = {  # what each package may import
    "words": set(),
    "runtime": set(),
    "pictures": set(),
    "core": {"words"},
    "checkpoints": {"core", "words"},
    "data": {"core", "words"},
    "models": {"core", "checkpoints", "words"},
    "interpret": {"core"},
    "tables": {"data", "models", "objectives"},
    "objectives": {"core", "data", "models", "generation", "interpret", "pictures", "words"},
    "native": {"core", "models", "runtime"},
    "embed": {"data", "native", "runtime"},
    "generation": {"core", "data", "interpret", "models", "native", "runtime", "words"},
    "evaluation": {"core", "data", "models", "native", "objectives", "generation", "words"},
    "training": {"core", "data", "models", "objectives", "generation", "evaluation", "checkpoints", "native", "words", "runtime"},
    "cli": {
        "core",
        "interpret",
        "data",
        "models",
        "objectives",
        "generation",
        "evaluation",
        "training",
        "checkpoints",
        "embed",
        "native",
        "words",
        "runtime",
        "pictures",
    },
}
FAMILY = re.compile(r"\b(gpt2|gpt3|llama|mistral|bert|t5model|marian|fsmt|roberta|bart|whisper|conformer|flamingo)\b", re.I)


def package(path):
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imports(tree, path):
    """Packages of qkv that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = path.relative_to(ROOT).parts[: -node.level]
                full = [*base, *((node.module or "").split(".") if node.module else [])]
                yield from ([full[0]] if full else [a.name for a in node.names])
            elif node.module and node.module.split(".")[0] == "qkv":
                yield node.module.split(".")[1]


def test_imports_go_down_only():
    seen = 0
    for path in FILES:
        here = package(path)
        if here in ("__init__", "__main__"):
            continue
        for there in imports(ast.parse(path.read_text()), path):
            assert there == here or there in BELOW[here] | {"__version__"}, f"{path.relative_to(ROOT)} imports {there}"
            seen += there != here
    assert seen > 40


def test_the_core_imports_torch_alone():
    standard = sys.stdlib_module_names
    for path in CORE:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            for name in names:
                assert name.split(".")[0] in standard | {"torch"}, f"{path.name} imports {name}"


def code_of(path):
    """The file without comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body and isinstance(node.body[0], ast.Expr):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def test_no_family_is_named_outside_models():
    for path in FILES:
        if package(path) in ("models", "cli"):
            continue
        text = code_of(path)
        if path.name == "tokenizer.py":  # formats of files are named after who made them
            text = text.replace("_gpt2", "").replace("_bert", "")
        found = FAMILY.search(text)
        assert not found, f"{path.relative_to(ROOT)} names {found.group()}"


def test_the_core_is_small():
    """What a newcomer reads stands in the folder itself; what makes it fast, in folders below, which obey the same rules."""
    size = {p: len(p.read_text().splitlines()) for p in CORE}
    assert sum(n for p, n in size.items() if p.parent == ROOT / "core") < 1650
    assert sum(size.values()) < 2800 and max(size.values()) <= 400
    for path in CORE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                count = len(node.args.args) - 1 + len(node.args.kwonlyargs)
                assert count <= 12, f"{path.name}:{node.lineno} takes {count}"


def test_nothing_unpickles():
    for path in FILES:
        code = code_of(path)
        assert "torch.load(" not in code and "import pickle" not in code, path
