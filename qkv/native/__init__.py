"""Kernels of our own for a CPU, compiled on the machine they run on: packed weights, and whole passes in one call.

They are a private layout of what `core` says: a model is lowered to them where every part is known, and results are compared with
the plain path in the tests.
"""

from .library import NoLibrary, available
from .program import CannotLower, Lowered, Program, Store, lower, lower_if
from .weights import PACKINGS, rounded

__all__ = ["PACKINGS", "CannotLower", "Lowered", "NoLibrary", "Program", "Store", "available", "lower", "lower_if", "rounded"]
