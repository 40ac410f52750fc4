"""Translations between an op's flat arguments and the types of problem.py.

torch's dispatcher takes flat lists in which an absent tensor is empty. Behind the op boundary an
absent tensor is None and arguments travel in named tuples. A function with the name of an op
takes an implementation on named tuples and the op's flat arguments. It returns the op's flat
outputs. The modules beside this one have the contracts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import (
    Candidates,
    ForceProblem,
    Forward,
    Gradients,
    LogSumExp,
    Needs,
    Prepared,
    Problem,
    Saved,
    SigmoidProblem,
    SigmoidSaved,
    Upstream,
    Wanted,
)


def _present(x: Tensor) -> Tensor | None:
    return x if x.numel() else None


def _lse(parts: Tensor) -> LogSumExp | None:
    return LogSumExp(parts) if parts.numel() else None


def _candidates(kind, offset, stride, key_a, key_b, one_set: bool) -> Candidates:
    return Candidates(kind, offset, stride, key_a, key_a if one_set else key_b)


def _prepared(a_hat, b_hat, a_inv, b_inv) -> Prepared:
    return Prepared(_present(a_hat), _present(b_hat), _present(a_inv), _present(b_inv))


def _flat_prepared(prepared: Prepared, problem) -> tuple[Tensor, ...]:
    hats = (_or_empty(x, problem.scale, problem.dtype) for x in prepared[:2])
    inverses = (_or_empty(x, problem.scale) for x in prepared[2:])
    return *hats, *inverses


def _or_empty(x: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(0, dtype=dtype) if x is None else x


def _flat_gradients(found: Gradients, problem) -> tuple[Tensor, ...]:
    a, b, scale = problem.a, problem.b, problem.scale
    return (
        _or_empty(found.a, a),
        _or_empty(found.b, a if b is None else b),
        _or_empty(found.scale, scale),
        _or_empty(found.bias, scale),
    )


def similarity_operands(problem: Problem) -> tuple[tuple, tuple]:
    """The similarity ops' six operands, and the four arguments that describe who is compared."""
    a, b, scale, bias, candidates, positive = problem[:6]
    kind, offset, stride, key_a, key_b = candidates
    keys = key_a, None if b is None else key_b
    return (a, b, scale, bias, *keys), (kind, offset, stride, positive)


def similarity_outputs(outputs) -> Forward:
    """What the forward op returned, by name."""
    rows, cols, pos, loss, row_max, col_max, a_hat, b_hat, a_inv, b_inv, mean = outputs
    return Forward(
        LogSumExp(rows),
        _lse(cols),
        _present(pos),
        _present(loss),
        _present(row_max),
        _present(col_max),
        _prepared(a_hat, b_hat, a_inv, b_inv),
        _present(mean),
    )


def similarity_inputs(saved: Saved, problem: Problem) -> tuple[Tensor, ...]:
    """The eight arguments of the backward op that the forward op has returned."""
    scale = problem.scale
    return (
        saved.row_lse.parts,
        _or_empty(None if saved.col_lse is None else saved.col_lse.parts, scale),
        _or_empty(saved.pos, scale),
        *_flat_prepared(saved.prepared, problem),
        _or_empty(saved.mean, scale),
    )


def similarity_forward(function, arguments) -> tuple[Tensor, ...]:
    """Run ``function(problem, wanted) -> Forward``."""
    a, b, scale, bias, key_a, key_b, kind, offset, stride, positive = arguments[:10]
    normalize, columns, extrema, weighted, dtype = arguments[10:]
    candidates = _candidates(kind, offset, stride, key_a, key_b, b is None)
    problem = Problem(a, b, scale, bias, candidates, positive, normalize, dtype)
    found = function(problem, Wanted(columns, extrema, weighted))
    row_lse, col_lse, pos, loss, row_max, col_max, prepared, mean = found
    return (
        row_lse.parts,
        _or_empty(None if col_lse is None else col_lse.parts, scale),
        _or_empty(pos, scale),
        _or_empty(loss, scale),
        _or_empty(row_max, scale),
        _or_empty(col_max, scale),
        *_flat_prepared(prepared, problem),
        _or_empty(mean, scale),
    )


def _similarity_saved(arguments) -> tuple[Upstream, Problem, Saved, Needs]:
    g_rows, g_cols, a, b, scale, bias, key_a, key_b = arguments[:8]
    rows, cols, pos, a_hat, b_hat, a_inv, b_inv, mean = arguments[8:16]
    kind, offset, stride, positive, normalize, dtype, *need = arguments[16:]
    candidates = _candidates(kind, offset, stride, key_a, key_b, b is None)
    problem = Problem(a, b, scale, bias, candidates, positive, normalize, dtype)
    prepared = _prepared(a_hat, b_hat, a_inv, b_inv)
    saved = Saved(LogSumExp(rows), _lse(cols), _present(pos), prepared, _present(mean))
    return Upstream(g_rows, _present(g_cols)), problem, saved, Needs(*need)


def similarity_backward(function, arguments) -> tuple[Tensor, ...]:
    """Run ``function(upstream, problem, saved, need) -> Gradients``."""
    upstream, problem, saved, need = _similarity_saved(arguments)
    return _flat_gradients(function(upstream, problem, saved, need), problem)


def similarity_second(function, arguments) -> tuple[Tensor, ...]:
    """Run ``function(tangents, upstream, problem, saved, need) -> (Upstream, Gradients)``."""
    upstream, problem, saved, need = _similarity_saved(arguments[4:])
    outputs, found = function(Gradients(*arguments[:4]), upstream, problem, saved, need)
    return outputs.rows, _or_empty(outputs.cols, problem.scale), *_flat_gradients(found, problem)


def sigmoid_forward(function, arguments) -> tuple[Tensor, ...]:
    """Run ``function(problem, extrema) -> SigmoidForward``."""
    a, b, scale, row_bias, key_a, key_b, kind, offset, stride = arguments[:9]
    positive, sign, normalize, extrema, dtype = arguments[9:]
    candidates = _candidates(kind, offset, stride, key_a, key_b, b is None)
    problem = SigmoidProblem(a, b, scale, row_bias, candidates, positive, sign, normalize, dtype)
    rows, pos, row_max, prepared = function(problem, extrema)
    return (
        rows,
        _or_empty(pos, scale),
        _or_empty(row_max, scale),
        *_flat_prepared(prepared, problem),
    )


def _sigmoid_saved(arguments) -> tuple[Tensor, SigmoidProblem, SigmoidSaved, Needs]:
    g_rows, a, b, scale, row_bias, key_a, key_b, pos = arguments[:8]
    kind, offset, stride, positive, sign, normalize, dtype, *need = arguments[12:]
    candidates = _candidates(kind, offset, stride, key_a, key_b, b is None)
    problem = SigmoidProblem(a, b, scale, row_bias, candidates, positive, sign, normalize, dtype)
    return g_rows, problem, SigmoidSaved(_present(pos), _prepared(*arguments[8:12])), Needs(*need)


def sigmoid_backward(function, arguments) -> tuple[Tensor, ...]:
    """Run ``function(g_rows, problem, saved, need) -> Gradients``."""
    g_rows, problem, saved, need = _sigmoid_saved(arguments)
    return _flat_gradients(function(g_rows, problem, saved, need), problem)


def sigmoid_second(function, arguments) -> tuple[Tensor, ...]:
    """Run ``function(tangents, g_rows, problem, saved, need) -> (rows, Gradients)``."""
    g_rows, problem, saved, need = _sigmoid_saved(arguments[4:])
    rows, found = function(Gradients(*arguments[:4]), g_rows, problem, saved, need)
    return rows, *_flat_gradients(found, problem)


def force_forward(function, arguments) -> tuple[Tensor, ...]:
    """Run ``function(problem) -> ForceForward``."""
    problem = ForceProblem(*arguments)
    force, log_norm, scale, lse_rows, lse_cols, shift, sums = function(problem)
    return force, log_norm, scale, lse_rows, _or_empty(lse_cols, log_norm), shift, sums


TYPED = {
    "similarity_forward": similarity_forward,
    "similarity_backward": similarity_backward,
    "similarity_second": similarity_second,
    "sigmoid_forward": sigmoid_forward,
    "sigmoid_backward": sigmoid_backward,
    "sigmoid_second": sigmoid_second,
    "force_forward": force_forward,
}
"""The ops whose implementations use named tuples, unless their module lists them in ``FLAT``."""


def call_flat(module, name: str, arguments: tuple):
    """Run the function `name` of `module` on the arguments of its op, less the backend.

    Returns the op's outputs. A module lists in ``FLAT`` the functions that take an op's own
    arguments.
    """
    function = getattr(module, name)
    if name not in TYPED or name in getattr(module, "FLAT", ()):
        return function(*arguments)
    return TYPED[name](function, arguments)
