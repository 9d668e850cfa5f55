"""qkv ls"""

HELP = """
qkv ls [presets|recipes|data|runs]

Lists what there is; without a word, all of it.
"""


def run(words, verb):
    kinds = ("presets", "recipes", "data", "runs")
    for w in words:
        if w not in kinds:
            raise ValueError(f"there is nothing called '{w}' to list; there are {', '.join(kinds)}")
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for kind in words or kinds:
        table = Table(
            title=kind, title_justify="left", title_style="bold", box=None, padding=(0, 1), show_header=kind in ("presets", "runs")
        )
        globals()[f"_{kind}"](table)
        console.print(table)
        console.print()


def _presets(table):
    from .. import models

    for c in ("name", "kind", "layers", "dim", "heads", "context", "vocab"):
        table.add_column(c, justify="left" if c in ("name", "kind") else "right", no_wrap=c == "name")
    for name in models.presets():
        cfg = models.preset(name)
        heads = f"{cfg.heads}/{cfg.kv_heads}" if cfg.kv_heads and cfg.kv_heads != cfg.heads else str(cfg.heads)
        table.add_row(name, type(cfg).__name__, str(cfg.layers), str(cfg.dim), heads, f"{cfg.length:,}", f"{cfg.vocab:,}")


def _recipes(table):
    from ..training import recipe

    for name, path in recipe.shipped().items():
        first = path.read_text(encoding="utf-8").split("\n")[0]
        table.add_row(name, first.removeprefix("# ") if first.startswith("#") else "")


def _data(table):
    from ..data import registry

    for name, about in registry.names().items():
        table.add_row(name, about)
    table.add_row("PATH", "a file, a folder, a glob; .txt, .jsonl (data.field=NAME), .gz; target=PATH for pairs")


def _runs(table):
    from ..training import folder

    for c in ("run", "preset", "steps", "held-out loss"):
        table.add_column(c, overflow="fold")
    from ..training import recipe

    for path in folder.runs()[:20]:
        rows = folder.read_metrics(path / "metrics.jsonl") if (path / "metrics.jsonl").exists() else []
        held = [r["valid_loss"] for r in rows if "valid_loss" in r]
        steps = max((r["step"] for r in rows), default=0)
        table.add_row(
            str(path), str(recipe.load(path / "recipe.toml")["model"].get("preset")), str(steps), f"{held[-1]:.3f}" if held else "-"
        )
