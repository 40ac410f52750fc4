"""Panels agree with the dense float64 oracle of the contract, by the registered ops.

The losses of the other tests use only a part of what the ops offer. For example, none has a bias
beside a positive. The kernels of the CPU and of GPUs are tested with such combinations, so panels
must be, too.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import native_calls as contract

from fused_contrastive.backends import panels

OPS = torch.ops.fused_contrastive


class Call(contract.Call):
    """This call is `contract.Call` on panels."""

    def forward(self, inputs=None):
        inputs = self.inputs if inputs is None else inputs
        flags = (self.columns, self.extrema, self.weighted, self.dtype)
        return OPS.similarity_forward(*inputs, *self.options, *flags, "panels")

    def backward(self, outputs, needs=(True, True, True, True), inputs=None, upstream=None):
        inputs = self.inputs if inputs is None else inputs
        rows, cols, pos, _, _, _, *prepared = outputs
        upstream = self.upstream() if upstream is None else upstream
        present = [need and x is not None for need, x in zip(needs, inputs[:4], strict=True)]
        saved = (*upstream, *inputs, rows, cols, pos, *prepared)
        return OPS.similarity_backward(*saved, *self.options, self.dtype, *present, "panels")


CALLS = {
    "in_batch": Call(M=30, N=70, offset=3, positive=3, bias="values"),
    "clip": Call(M=50, N=50, positive=0, columns=True, normalize=False, scale=0.5, bias="values"),
    "keyed": Call(M=40, N=40, kind="other_key", positive=0, columns=True, bias="values"),
    "nt_xent": Call(M=66, kind="not_pair", stride=33, positive=33),
    "padding": Call(M=40, N=75, kind="not_self", columns=True, bias="padding"),
    "several groups": Call(G=3, M=20, N=25, kind="same_key", columns=True, bias="values"),
}


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("panel", (1 << 19, 300), ids=("one-panel", "several-panels"))
@pytest.mark.parametrize("name", CALLS)
def test_contract(name, panel, dtype, monkeypatch):
    holder = getattr(panels, "_panel", panels)
    monkeypatch.setattr(holder, "PANEL", panel)
    contract.check(replace(CALLS[name], dtype=dtype))
