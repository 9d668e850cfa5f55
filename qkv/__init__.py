"""qkv: one small set of Transformer parts, and every architecture composed from it.

model = qkv.create("gpt2", position="alibi", kv_heads=2)      # any slot of any preset can be replaced
model = qkv.load("path/or/hub-id")                            # published checkpoints, equal to the reference
qkv.save(model, "folder")                                     # in the layout they came in
"""

__version__ = "0.1.0"
_EXPORTS = {"create": "models", "load": "models", "save": "models", "preset": "models", "presets": "models", "Cache": "core"}


def __getattr__(name):  # `import qkv` and `qkv --help` answer before torch is imported
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module 'qkv' has no attribute '{name}'")


def __dir__():
    return [*_EXPORTS, "__version__"]
