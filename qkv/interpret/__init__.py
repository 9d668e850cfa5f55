"""Looking into models: what attention attends to."""

from .attention import alignment, rollout, weights

__all__ = ["alignment", "rollout", "weights"]
