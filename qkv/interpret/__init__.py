"""Looking into models: what attention attends to."""

from .attention import rollout, weights

__all__ = ["rollout", "weights"]
