"""Jitted flash attention over keys and values as they are: raw pages, and the exact part of a prefill. Scores are in units of log2.

Products run on tensor cores in the keys' dtype; where a float32 operand would lose bits there, it is split into terms that add up to it.
"""

# Jitted code has its own types, and needs `else` after `return` and `+` of tuples:
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False, disable-error-code="assignment,annotation-unchecked"

from __future__ import annotations

import triton
import triton.language as tl

NEVER = tl.constexpr(-1.0e30)  # a score below all scores; finite, so that differences are numbers


@triton.jit
def split_terms(x, DTYPE: tl.constexpr, TERMS: tl.constexpr):
    """float x -> TERMS tensors of DTYPE that add up to it, to their precision."""
    terms = ()
    rest = x.to(tl.float32)
    for _ in tl.static_range(TERMS):
        term = rest.to(DTYPE)
        terms = terms + (term,)
        rest = rest - term.to(tl.float32)
    return terms


@triton.jit
def dot_terms(terms, y, PTX: tl.constexpr):
    """(sum of terms [m, k]) @ y [k, n], float32. The interpreter cannot multiply bf16: there, float32 takes its place."""
    COUNT: tl.constexpr = len(terms)
    product = tl.zeros((terms[0].shape[0], y.shape[1]), tl.float32)
    for i in tl.static_range(COUNT):
        if PTX:
            product = tl.dot(terms[i], y, product, input_precision="ieee")
        else:
            product += tl.dot(terms[i].to(tl.float32), y.to(tl.float32))
    return product


@triton.jit
def empty_rows(ROWS: tl.constexpr, DIM: tl.constexpr):
    """No keys attended yet: largest score [ROWS], total [ROWS], output [ROWS, DIM]."""
    top = tl.full((ROWS,), NEVER, tl.float32)
    return top, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, DIM), tl.float32)


@triton.jit
def attend_keys(state, q_terms, k, v, seen, scale, W_TERMS: tl.constexpr, PTX: tl.constexpr):
    """Adds keys k and values v [n, DIM] to `state`; `seen` [ROWS, n] says which keys a row attends to. `scale` includes log2(e).

    Keys that no row sees must be finite.
    """
    top, total, out = state
    scores = tl.where(seen, dot_terms(q_terms, tl.trans(k), PTX) * scale, NEVER)
    new_top = tl.maximum(top, tl.max(scores, 1))
    keep = tl.exp2(top - new_top)
    w = tl.where(seen, tl.exp2(scores - new_top[:, None]), 0.0)
    total = total * keep + tl.sum(w, 1)
    out = out * keep[:, None] + dot_terms(split_terms(w, v.dtype, W_TERMS), v, PTX)
    return new_top, total, out
