"""The CPU backend: it checks the arguments of each op and hands them to the C++ library `_C_cpu`.

The library (csrc/cpu) knows no torch. It gets addresses, sizes, strides and the number of threads.
It reads and writes where it is told to, so everything that an op is given is checked here, once.
The library picks this machine's best instruction set. Where it cannot be used, `refusal` and
`status` say why. Importing this module never fails.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _checked

FLAT = (
    "similarity_forward",
    "similarity_backward",
    "sigmoid_forward",
    "sigmoid_backward",
    "force_forward",
)
"""Functions that take the arguments of their op as they are."""

DTYPES = tuple(_checked.TYPES)
_LIBRARY = "fused_contrastive._C_cpu"
_AGAIN = "install the package again, or run `python -m fused_contrastive build` in its sources"


def _installed_elsewhere(here: Path) -> Path | None:
    """The folder of an installed copy of this package that is not the one in `here`."""
    import importlib.metadata

    for found in importlib.metadata.distributions(name="fused-contrastive"):
        folder = Path(str(found.locate_file("fused_contrastive")))
        if (folder / "__init__.py").is_file() and not folder.samefile(here):
            return folder
    return None


def _load():
    """The library, or the reason why there is none."""
    package = sys.modules[_LIBRARY.partition(".")[0]]
    here = Path(__file__).resolve().parents[1]
    try:
        library = importlib.import_module(_LIBRARY)
    except ModuleNotFoundError:
        there = _installed_elsewhere(here)
        if there is not None:
            return (
                f"you are importing the sources in {here}, the installed package is in {there}: "
                f"start Python in another folder, or run `python -m fused_contrastive build` here"
            )
        return f"{here} holds no compiled kernels: {_AGAIN}"
    except ImportError as error:
        return f"the library of the kernels does not load ({error}): {_AGAIN}"
    built, version = getattr(library, "VERSION", "another version"), package.__version__
    if built != version:
        return f"the kernels are those of {built}, this package is {version}: {_AGAIN}"
    return library


_loaded = _load()
_reason = _loaded if isinstance(_loaded, str) else None
_ops: Any = None if _reason is not None else _loaded
_isas = [] if _ops is None else _ops.ISAS.split()
_isa = len(_isas) - 1


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve this device and matrix dtype, or None when it can."""
    if _reason is not None:
        return _reason
    if device.type != "cpu":
        return "the native CPU kernels serve tensors on the CPU"
    if dtype not in DTYPES:
        served = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        return f"the native CPU kernels serve {served}"
    return None


def status() -> str:
    """``"available: <ISA>"`` or ``"unavailable: <reason>"``."""
    return f"available: {isa()}" if _reason is None else f"unavailable: {_reason}"


def isa() -> str:
    """The instruction set in use."""
    return _isas[_isa]


def set_isa(name: str) -> None:
    """Use another instruction set from now on, to find out whether one of them is at fault.

    Raises:
        ValueError: this library and this CPU have no instruction set of this name.
    """
    global _isa
    if name not in _isas:
        raise ValueError(f"isa must be one of {', '.join(_isas)} here, got {name!r}")
    _isa = _isas.index(name)
    _ops.set_isa(_isa)


def _memory(size: int) -> Tensor:
    """Memory for the kernels to work in, of so many bytes."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def _addresses(*tensors: Tensor | None) -> list[int]:
    """Where the tensors lie, 0 for absent and for empty ones."""
    return [0 if x is None else x.data_ptr() for x in tensors]


def _call(function, *arguments) -> None:
    """Run a function of the library on torch's threads."""
    function(*arguments, _memory, torch.get_num_threads())


def _pairs_arguments(pairs: _checked.Pairs, prepared, da=None, db=None) -> tuple:
    """What the library reads of a problem, its vectors and its keys."""
    a_hat, b_hat, a_inv, b_inv = prepared
    sets = _checked.vectors(pairs.a, *_addresses(a_hat, a_inv, da))
    if pairs.b is not None:
        sets += _checked.vectors(pairs.b, *_addresses(b_hat, b_inv, db))
    return *pairs.arguments, *sets, *_addresses(*pairs.keys)


def _to_prepare(pairs: _checked.Pairs, normalize: bool, new) -> tuple[Tensor, ...]:
    """Memory for what forward prepares: ``a_hat``, ``b_hat``, ``a_inv`` and ``b_inv``."""
    G, M, N, D = pairs.sizes
    a, b, dtype = pairs.a, pairs.b, pairs.dtype
    like = new if dtype is pairs.accumulate else partial(new, dtype=dtype)
    a_rounds = normalize or a.dtype is not dtype
    b_rounds = b is not None and (normalize or b.dtype is not dtype)
    return (
        like(G, M, D) if a_rounds else like(0),
        like(G, N, D) if b_rounds else like(0),
        new(G, M) if normalize else new(0),
        new(G, N) if normalize and b is not None else new(0),
    )


def _gradients(pairs: _checked.Pairs, needs, bias: tuple[int, int], new) -> tuple[Tensor, ...]:
    """Memory for the gradients that are needed: ``da``, ``db``, ``dscale`` and ``dbias``."""
    a, columns = pairs.a, pairs.a if pairs.b is None else pairs.b
    G, M, N, D = pairs.sizes
    need_a, need_b, need_scale, need_bias = needs
    return (
        a.new_empty(G, M, D) if need_a else a.new_empty(0),
        columns.new_empty(G, N, D) if need_b else columns.new_empty(0),
        new(()) if need_scale else new(0),
        new(*bias) if need_bias else new(0),
    )


def similarity_forward(
    a, b, scale, bias, key_a, key_b, kind, offset, stride, positive, normalize, *options
):
    """The op of this name (ops/similarity.py). It takes the op's arguments, less the backend."""
    columns, extrema, weighted, dtype = options
    pairs = _checked.pairs((a, b, scale, key_a, key_b), (kind, offset, stride, positive), dtype)
    G, M, N, D = pairs.sizes
    paired = positive >= 0
    bias = _checked.column_bias(pairs, bias)
    if columns and (b is None or (paired and M != N)):
        raise ValueError("columns must be False without b, and with a positive unless M = N")
    if weighted and (b is None or columns or paired):
        raise ValueError("weighted must be False without b, with columns and with a positive")
    new = scale.new_empty
    vectors = (
        new(2, G, M),
        new(2, G, N) if columns else new(0),
        new(G, M) if paired else new(0),
        new(G, M) if paired else new(0),
        new(G, M) if extrema else new(0),
        new(G, N) if extrema and columns else new(0),
    )
    prepared = _to_prepare(pairs, normalize, new)
    mean = new(G, M, D) if weighted else new(0)
    arguments = _pairs_arguments(pairs, prepared)
    _call(_ops.similarity_forward, *arguments, normalize, *_addresses(bias, *vectors, mean))
    return *vectors, *prepared, mean


def similarity_backward(g_rows, g_cols, a, b, scale, bias, *rest):
    """The op of this name (ops/similarity.py). It takes the op's arguments, less the backend."""
    key_a, key_b, rows, cols, pos, a_hat, b_hat, a_inv, b_inv, mean = rest[:10]
    kind, offset, stride, positive, normalize, dtype, *needs = rest[10:]
    pairs = _checked.pairs((a, b, scale, key_a, key_b), (kind, offset, stride, positive), dtype)
    (G, M, N, D), accumulate = pairs.sizes, pairs.accumulate
    bias = _checked.column_bias(pairs, bias)
    needs[1], needs[3] = needs[1] and b is not None, needs[3] and bias is not None
    new = scale.new_empty
    gradients = _gradients(pairs, needs, (G, N), new)
    if not any(needs):
        return gradients
    columns, paired = cols.numel() > 0, positive >= 0
    if columns and (b is None or (paired and M != N)):
        raise ValueError("cols must be empty without b, and with a positive unless M = N")
    weighted = mean.numel() > 0
    if weighted and (b is None or columns or paired):
        raise ValueError("mean must be empty without b, with cols and with a positive")
    check = _checked.tensor
    saved = (
        check("g_rows", g_rows, (G, M), accumulate),
        check("g_cols", g_cols, (G, N), accumulate) if columns and not paired else None,
        check("rows", rows, (2, G, M), accumulate),
        check("cols", cols, (2, G, N), accumulate) if columns else None,
        check("pos", pos, (G, M), accumulate) if paired else None,
        check("mean", mean, (G, M, D), accumulate) if weighted else None,
    )
    prepared = _checked.prepared(pairs, normalize, (a_hat, b_hat, a_inv, b_inv))
    da, db, dscale, dbias = gradients
    arguments = _pairs_arguments(pairs, prepared, da, db)
    _call(_ops.similarity_backward, *arguments, *_addresses(bias, *saved, dbias, dscale))
    return gradients


def sigmoid_forward(a, b, scale, row_bias, key_a, key_b, *options):
    """The op of this name (ops/sigmoid.py). It takes the op's arguments, less the backend."""
    kind, offset, stride, positive, sign, normalize, extrema, dtype = options
    pairs = _checked.pairs((a, b, scale, key_a, key_b), (kind, offset, stride, positive), dtype)
    G, M, _, _ = pairs.sizes
    row_bias = _checked.row_bias(pairs, row_bias, sign)
    new = scale.new_empty
    vectors = (
        new(G, M),
        new(G, M) if positive >= 0 else new(0),
        new(G, M) if extrema else new(0),
    )
    prepared = _to_prepare(pairs, normalize, new)
    arguments = _pairs_arguments(pairs, prepared)
    _call(_ops.sigmoid_forward, *arguments, normalize, sign, *_addresses(row_bias, *vectors))
    return *vectors, *prepared


def sigmoid_backward(g_rows, a, b, scale, row_bias, key_a, *rest):
    """The op of this name (ops/sigmoid.py). It takes the op's arguments, less the backend."""
    key_b, pos, a_hat, b_hat, a_inv, b_inv = rest[:6]
    kind, offset, stride, positive, sign, normalize, dtype, *needs = rest[6:]
    pairs = _checked.pairs((a, b, scale, key_a, key_b), (kind, offset, stride, positive), dtype)
    G, M, _, _ = pairs.sizes
    row_bias = _checked.row_bias(pairs, row_bias, sign)
    needs[1] = needs[1] and b is not None
    gradients = _gradients(pairs, needs, (G, M), scale.new_empty)
    if not any(needs):
        return gradients
    g_rows = _checked.tensor("g_rows", g_rows, (G, M), pairs.accumulate)
    pos = _checked.tensor("pos", pos, (G, M), pairs.accumulate) if positive >= 0 else None
    prepared = _checked.prepared(pairs, normalize, (a_hat, b_hat, a_inv, b_inv))
    da, db, dscale, dbias = gradients
    arguments = _pairs_arguments(pairs, prepared, da, db)
    addresses = _addresses(row_bias, g_rows, pos, dbias, dscale)
    _call(_ops.sigmoid_backward, *arguments, sign, *addresses)
    return gradients


def force_forward(x, inverse_temperatures, scale, weight, rows, negatives, *options):
    """The op of this name (ops/force.py). It takes the op's arguments, less the backend."""
    all_rows, _mask, _self_logit, _floor, _denominator, clip, rms, separate = options
    points = _checked.force_points(x, weight, rows)
    G, P, D = points.x.shape
    check, accumulate = _checked.tensor, points.accumulate
    K = inverse_temperatures.numel()
    if not K:
        raise ValueError("inverse_temperatures must be [K] and not empty, got no element")
    inverse_temperatures = check("inverse_temperatures", inverse_temperatures, (K,), accumulate)
    if not rows <= negatives <= P:
        raise ValueError(f"negatives must be {rows} to {P}, got {negatives}")
    if rms and not (all_rows and negatives == rows and weight is None):
        raise ValueError(
            "rms must be False without all_rows, unless negatives = rows, and with weight"
        )
    if scale is not None:
        scale = check("scale", scale, (G,), accumulate)
    elif clip or weight is not None:
        raise ValueError("scale must be given with a clip or a weight")
    new = inverse_temperatures.new_empty
    outputs = (
        new((K if separate else 1, G, rows, D)),
        new((K, G)),
        new((G,)),
        new((K, G, P if all_rows else rows)),
        new(0 if all_rows else (K, G, P)),
        new((2, K, G, rows)),
        new((2, K, G, rows)),
    )
    addresses = _addresses(inverse_temperatures, scale, points.weight, *outputs)
    _call(_ops.force, *points.arguments, K, rows, negatives, *options, *addresses)
    return outputs


def distance_sums(x, weight, rows, clip):
    """The op of this name (ops/force.py). It takes the op's arguments, less the backend."""
    points = _checked.force_points(x, weight, rows)
    out = x.new_empty((x.shape[0], rows), dtype=points.accumulate)
    _call(
        _ops.distances, *points.arguments, rows, clip, *_addresses(points.weight, None, out, None)
    )
    return out


def distance_gradient(g, x):
    """The op of this name (ops/force.py). It takes the op's arguments, less the backend."""
    points = _checked.force_points(x, None, x.shape[1])
    g = _checked.tensor("g", g, (x.shape[0],), points.accumulate)
    out = x.new_empty(x.shape)
    _call(_ops.distances, *points.arguments, x.shape[1], 0.0, *_addresses(None, g, None, out))
    return out
