"""qkv VERB WHAT [key=value ...] [--flags]. Answers --help and wrong words before torch is imported."""

import importlib
import sys

from ..runtime import before_torch
from ..words import nearest

VERBS = {
    "ls": "list presets, recipes, data sets and runs",
    "show": "a model's blocks, parameters, FLOPs and memory, without allocating it",
    "cost": "FLOPs, memory and time of a model as the text grows, counted and measured",
    "compare": "train or time variants of a model side by side: a table and a picture",
    "train": "train a preset, a recipe, or go on with a run",
    "generate": "write on from a prompt, or answer a source text",
    "chat": "the same, as an interactive session",
    "eval": "loss, perplexity and bits a byte on a held-out file; BLEU for translation",
    "transcribe": "the words of a sound, with their times",
    "classify": "what an image shows: a classifier's labels, or any words by CLIP",
    "forecast": "the next steps of a series, and how sure they are",
    "recommend": "what somebody takes next",
    "caption": "words for an image, after a few examples",
    "embed": "vectors of sentences, and how alike they are",
    "bench": "what this machine can do: products, memory, and what qkv makes of it",
    "convert": "write a run or a foreign checkpoint as a published folder",
}
HELP = """qkv: one small set of Transformer parts, and every architecture composed from it.

usage: qkv VERB WHAT [key=value ...] [--flags]

{verbs}

start here:
  qkv train                                train a small GPT for a minute on text that ships with Python
  qkv generate last "The meaning of"       let it write
  qkv show gpt2 position=alibi kv_heads=2  see what a replaced slot does to a model
  qkv train bert-nano steps=300            the same command trains any preset

`qkv VERB --help` explains a verb.
"""


def main(argv=None):
    """Runs one command; returns the exit status: 0 (also after a saved interruption), 1 (failed), 2 (wrong input), 130 (interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {v:<10} {about}" for v, about in VERBS.items())))
        return 0
    verb, *rest = argv
    if verb in ("--version", "version"):
        from .. import __version__

        print(f"qkv {__version__}")
        return 0
    if verb not in VERBS:
        print(f"qkv: there is no verb '{verb}'.{nearest(verb, VERBS)} There are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f".{'generate' if verb == 'chat' else verb}", __package__)
    if any(a in ("-h", "--help") for a in rest):
        print(module.HELP.strip())
        return 0
    before_torch()
    try:
        return module.run(rest, verb) or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except (ValueError, OSError, RuntimeError) as e:
        if not _earned(e):
            raise
        print(f"qkv {verb}: {e}", file=sys.stderr)
        return 2


def _earned(error):
    """Is this an error that says what the user can do? Others keep their traceback."""
    if isinstance(error, OSError):
        return True
    raised_in = error.__traceback__
    while raised_in.tb_next:
        raised_in = raised_in.tb_next
    return "qkv" in raised_in.tb_frame.f_globals.get("__name__", "").split(".")


def options(words, known, flags=()):
    """Splits words into (plain words, {key: value}, {flags}); keys come from `known`, other words with = stay plain.

    Raises ValueError for an unknown flag.
    """
    from ..training.recipe import read_value

    plain, values, seen = [], {}, set()
    for word in words:
        key, eq, value = word.partition("=")
        if word.startswith("--"):
            if word[2:] not in flags:
                raise ValueError(
                    f"there is no flag {word}.{nearest(word[2:], flags)} There are {', '.join('--' + f for f in flags) or 'none'}"
                )
            seen.add(word[2:])
        elif eq and key in known:
            values[key] = read_value(value)
        elif eq and key.isidentifier() and nearest(key, known):
            raise ValueError(f"there is no key '{key}'.{nearest(key, known)}")
        else:
            plain.append(word)
    return plain, values, seen
