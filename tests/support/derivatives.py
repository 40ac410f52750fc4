"""The tests of second derivatives use these losses, inputs and derivatives."""

import torch

import fused_contrastive as fc
from fused_contrastive import reference
from support import cases


def upstream(tensors, seed):
    """Draw numbers in [0.5, 1.5] that are exact in every dtype."""
    return [
        cases.positive_weights(x.shape, seed + n).to(x.device, x.dtype).requires_grad_()
        for n, x in enumerate(tensors)
    ]


def derivatives(function, leaves, seed=0):
    """Return the gradients of ``<t, gradients of <g, outputs>>`` by g and the leaves.

    Both g and t are random.
    """
    out = function(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    g = upstream(out, seed)
    first = torch.autograd.grad(out, leaves, g, create_graph=True)
    return torch.autograd.grad(
        first, [*g, *leaves], upstream(first, seed + 10), materialize_grads=True
    )


def nt_xent(backend):
    function = reference.nt_xent_loss if backend == "reference" else fc.nt_xent_loss
    more = {} if backend == "reference" else {"backend": backend}
    return lambda z1, z2, temperature: function(z1, z2, temperature, reduction="none", **more)


def clip(backend):
    function = reference.clip_loss if backend == "reference" else fc.clip_loss
    more = {} if backend == "reference" else {"backend": backend}
    return lambda z1, z2, temperature: function(z1, z2, 1 / temperature, reduction="none", **more)


def edge_inputs(name, device):
    z1, z2 = (torch.randn(6, 4, dtype=torch.float64, device=device) for _ in range(2))
    temperature = {"cold": 1e-3, "repelling": -0.1, "hot": 1e3}.get(name, 0.3)
    if name in ("one row", "two rows"):
        rows = 1 if name == "one row" else 2
        z1, z2 = z1[:rows], z2[:rows]
    elif name == "below the norm floor":
        z1[2] *= 1e-13
    elif name == "short row":
        z1[2] *= 1e-11
    elif name == "equal rows":
        z1 = z1[:1].expand(6, 4)
    elif name == "strides":
        z1, z2 = torch.randn(4, 6, dtype=torch.float64, device=device).T, z2.repeat(2, 1)[::2]
    return [
        x.detach().requires_grad_()
        for x in (z1, z2, torch.tensor(temperature, dtype=torch.float64, device=device))
    ]
