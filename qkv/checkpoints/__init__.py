"""Checkpoints: published folders in and out. Knows no model family; `qkv.models` hands it tables."""
