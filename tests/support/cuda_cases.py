"""The tests of the CUDA similarity kernels use these cases and precisions."""

from __future__ import annotations

import cuda_host
import pytest
import torch

from fused_contrastive import problem as candidates
from fused_contrastive.backends.cuda import _tiles
from support.cuda_calls import Call, backend, operators  # noqa: F401

PRECISIONS = {
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
    "tf32": (torch.float32, _tiles.TF32),
    "tf32x3": (torch.float32, _tiles.TF32X3),
    "fma": (torch.float32, _tiles.FMA),
    "fp64": (torch.float64, None),
}


TOLERANCE = {"bf16": 2e-2, "fp16": 3e-3, "tf32": 4e-3, "tf32x3": 2e-5, "fma": 2e-5, "fp64": 1e-12}


CASES = {
    "all": Call(kind="all"),
    "not_self": Call(),
    "not_self_offset": Call(offset=3),
    "not_pair": Call(kind="not_pair", stride=20),
    "not_pair_short": Call(kind="not_pair", stride=3, offset=1),
    "other_key": Call(kind="other_key"),
    "same_key": Call(kind="same_key"),
    "no_self": Call(kind="same_key", offset=candidates.NO_SELF),
}


SYMMETRIC = [name for name, call in CASES.items() if call.offset in (0, candidates.NO_SELF)]


POSITIVES = {
    "nt_xent": Call(M=130, kind="not_pair", stride=65, positive=65),
    "clip": Call(M=150, N=150, positive=0, columns=True, normalize=False, scale=0.5),
    "in_batch": Call(M=90, N=200, offset=3, positive=3),
    "cpc": Call(G=3, M=64, N=64, D=40, positive=0, normalize=False, scale=0.3),
    "keyed": Call(M=100, N=100, kind="other_key", positive=0, columns=True),
}


ORDERED = {"clip": "bf16-sm90", "keyed": "tf32x3"}


@pytest.fixture(params=[*PRECISIONS, "bf16-sm90", "fp16-sm90"])
def precision(request, device, monkeypatch):
    """Give (name, dtype) of every way in which matrices are multiplied."""
    name, _, architecture = request.param.partition("-")
    dtype, float32 = PRECISIONS[name]
    if float32 is not None:
        monkeypatch.setattr(_tiles, "float32_products", lambda _: float32)
    if not architecture:
        yield name, dtype
    elif device.type == "cuda":
        pytest.skip("a GPU has one way of its own")
    else:
        cuda_host.load().capability(9)
        monkeypatch.setattr(_tiles, "super_unit", lambda _: _tiles.TILE_SM90)
        yield name, dtype
        cuda_host.load().capability(8)
