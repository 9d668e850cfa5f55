"""The patterns there are, and how text names them."""

import ast

from . import efficient
from .masks import And, Causal, Documents, Full, Or, Pattern, Prefix, Sliding
from .slots import build

PATTERNS = {"full": Full, "causal": Causal, "sliding": Sliding, "prefix": Prefix, "documents": Documents} | efficient.PATTERNS


def read_pattern(text, **given):
    """'causal & documents | prefix(4)' -> Pattern. Raises ValueError with what is allowed."""
    if isinstance(text, Pattern):
        return text
    try:
        node = ast.parse(str(text).strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"pattern: cannot read '{text}': join names or calls by & and |, e.g. causal & sliding(128)") from None

    def walk(node):
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.BitOr)):
            kind = And if isinstance(node.op, ast.BitAnd) else Or
            return kind(walk(node.left), walk(node.right))
        return build("pattern", ast.unparse(node), PATTERNS, **given)

    return walk(node)
