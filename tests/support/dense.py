"""These are calls of a backend's two functions, and the same by autograd in float64.

Autograd works over the whole matrix. Nothing of it comes from the backends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fused_contrastive import problem as candidates
from fused_contrastive import triton_kernels as backend
from fused_contrastive.ops._codec import call_flat

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
NO_SELF = candidates.NO_SELF


@dataclass(frozen=True)
class Call:
    """This is one use of the backend.

    Dimensions and options are those of fused_contrastive/ops.py. N=None means one set.
    """

    M: int = 50
    N: int | None = None
    D: int = 24
    G: int = 1
    kind: str = "all"
    offset: int = 0
    stride: int = 1
    positive: int = -1
    normalize: bool = True
    columns: bool = False
    extrema: bool = False
    weighted: bool = False
    bias: bool = False
    scale: float = 5.0
    dtype: torch.dtype = F64

    def __str__(self):
        named = (
            f"{name}={value}" for name, value in vars(self).items() if value != vars(Call())[name]
        )
        return " ".join(named).replace("torch.", "") or "plain"

    def draw(self, device, spread=1.0, seed=0):
        """Return (a, b, scale, bias, key_a, key_b).

        Of one set, the second half is the first half plus `spread` times noise. Of two sets, b is a
        plus such noise.
        """
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape):
            return torch.randn(shape, generator=generator, dtype=F64)

        width = self.N or self.M // 2
        base = noise(self.G, max(width, self.M), self.D)
        if self.N is None:
            a, b = (
                torch.cat(
                    [base[:, :width], base[:, :width] + spread * noise(self.G, width, self.D)], 1
                ),
                None,
            )
            a = torch.cat([a, base[:, : self.M - 2 * width]], 1)
        else:
            a, b = base[:, : self.M], base[:, : self.N] + spread * noise(self.G, self.N, self.D)
        columns = self.N or self.M
        accumulate = F64 if self.dtype == F64 else F32
        bias = noise(self.G, columns).to(accumulate) if self.bias else None
        if bias is not None and self.positive < 0:
            bias[:, ::7] = float("-inf")
        key_a = torch.randint(0, 4, (self.G, self.M), generator=generator)
        key_b = key_a if b is None else torch.randint(0, 4, (self.G, columns), generator=generator)
        keys = (key_a, key_b) if self.kind in candidates.KEYED else (None, None)
        scale = torch.tensor(self.scale, dtype=accumulate)
        matrices = (a.to(self.dtype), None if b is None else b.to(self.dtype))
        return [x if x is None else x.to(device) for x in (*matrices, scale, bias, *keys)]

    @property
    def options(self):
        return self.kind, self.offset, self.stride, self.positive, self.normalize


NAMES = (
    "rows",
    "cols",
    "pos",
    "loss",
    "row_max",
    "col_max",
    "a_hat",
    "b_hat",
    "a_inv",
    "b_inv",
    "mean",
)
GRADIENTS = ("da", "db", "dscale", "dbias")


def upstream(call, rows, cols):
    generator = torch.Generator().manual_seed(1)
    g_rows = torch.randn(rows.shape, generator=generator, dtype=F64).to(rows)
    g_cols = (
        torch.randn(cols.shape, generator=generator, dtype=F64).to(rows)
        if call.positive < 0
        else rows.new_empty(0)
    )
    return g_rows, g_cols


def run(call, operands, g=None, need=(True, True, True, True)) -> dict[str, torch.Tensor]:
    """Return the results of the backend's forward and backward by name, without absent ones."""
    a, b, _scale, bias, _, _ = operands
    flags = (call.columns, call.extrema, call.weighted)
    forward = call_flat(
        backend, "similarity_forward", (*operands, *call.options, *flags, call.dtype)
    )
    saved = dict(zip(NAMES, forward, strict=True))
    rows, cols = saved["rows"], saved["cols"]
    g_rows, g_cols = (
        upstream(call, rows[0], cols[0] if cols.numel() else cols)
        if g is None
        else (g, cols.new_empty(0))
    )
    need = (need[0], need[1] and b is not None, need[2], need[3] and bias is not None)
    tensors = (g_rows, g_cols, *operands, rows, cols, saved["pos"], *forward[6:])
    results = call_flat(
        backend, "similarity_backward", (*tensors, *call.options, call.dtype, *need)
    )
    assert results[0].dtype == a.dtype
    for name in ("rows", "cols"):
        if saved[name].numel():
            rounded, lost = saved[name]
            limit = rounded.abs().nan_to_num(0.0, 0.0) * torch.finfo(rounded.dtype).eps / 2
            assert (lost.abs() <= limit).all(), name
            saved[name] = rounded
    named = saved | dict(zip(GRADIENTS, results, strict=True))
    return {name: value for name, value in named.items() if value.numel()}


def dense(call, operands, g=None) -> dict[str, torch.Tensor]:
    """Return the same by autograd over the whole matrix in float64.

    It starts from the rounded rows that the backend sees.
    """
    a, b, scale, bias, key_a, key_b = (None if x is None else x.detach().cpu() for x in operands)
    leaves = [None if x is None else x.to(F64).requires_grad_() for x in (a, b, scale, bias)]

    def rounded(x):
        if call.normalize:
            x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return x + (x.to(F32 if call.dtype != F64 else F64).to(call.dtype).to(F64) - x).detach()

    x = rounded(leaves[0])
    y = x if b is None else rounded(leaves[1])
    s = leaves[2] * x @ y.transpose(1, 2)
    if bias is not None:
        s = s + leaves[3][:, None, :]
    i, j = torch.arange(call.M)[:, None], torch.arange(s.shape[2])[None, :]
    keep = {
        "all": lambda: torch.ones(s.shape, dtype=torch.bool),
        "not_self": lambda: (j != i + call.offset).expand(s.shape),
        "not_pair": lambda: ((j - i - call.offset) % call.stride != 0).expand(s.shape),
        "other_key": lambda: key_a[:, :, None] != key_b[:, None, :],
        "same_key": lambda: (key_a[:, :, None] == key_b[:, None, :]) & (j != i + call.offset),
    }[call.kind]()
    kept = s.masked_fill(~keep, float("-inf"))
    out = {"rows": safe_logsumexp(kept, 2)}
    if call.columns:
        out["cols"] = safe_logsumexp(kept, 1)
    if call.extrema:
        out["row_max"] = kept.amax(2)
        if call.columns:
            out["col_max"] = kept.amax(1)
    if call.weighted:
        weights = (kept - out["rows"].nan_to_num(neginf=0.0)[..., None]).exp()
        out["mean"] = weights @ y
    if call.positive >= 0:
        partner = (torch.arange(call.M) + call.positive) % s.shape[2]
        pos = s[:, torch.arange(call.M), partner]
        softplus = torch.nn.functional.softplus
        loss = softplus(out["rows"] - pos, threshold=700)
        if call.columns:
            loss = (loss + softplus(out["cols"][:, partner] - pos, threshold=700)) / 2
        out |= {"pos": pos, "loss": loss}
    g_rows, g_cols = (
        upstream(call, out["rows"], out.get("cols", out["rows"].new_empty(0)))
        if g is None
        else (g.cpu().to(F64), None)
    )
    total = (out["loss" if call.positive >= 0 else "rows"].nan_to_num(neginf=0.0) * g_rows).sum()
    if call.columns and call.positive < 0:
        total = total + (out["cols"].nan_to_num(neginf=0.0) * g_cols).sum()
    total.backward()
    out |= {
        name: leaf.grad for name, leaf in zip(GRADIENTS, leaves, strict=True) if leaf is not None
    }
    return {name: value.detach() for name, value in out.items()}


def safe_logsumexp(s, dim):
    """Return a log-sum-exp whose gradient is 0, not NaN, where every element is -inf."""
    empty = (s == float("-inf")).all(dim, keepdim=True)
    value = torch.where(empty, 0.0, s).logsumexp(dim)
    return torch.where(empty.squeeze(dim), float("-inf"), value)


def error(value, truth) -> float:
    """Return the relative error by norm over the finite entries. The others must be the same."""
    value, truth = value.detach().cpu().to(F64), truth.to(F64)
    assert value.shape == truth.shape
    finite = truth.isfinite()
    torch.testing.assert_close(value[~finite], truth[~finite], equal_nan=True)
    return ((value[finite] - truth[finite]).norm() / truth[finite].norm().clamp_min(1e-300)).item()
