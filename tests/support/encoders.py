"""These are small encoders, and the gradients of a step with them."""

from itertools import pairwise

import torch
from torch import nn


def mlp(*sizes, dropout=0.0):
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def chunked(encoder, x, size):
    """Encode the chunks with their graphs and put them together.

    The cached step must give the same.
    """
    return torch.cat([encoder(part) for part in x.split(size)])


def gradients(*modules):
    return {
        f"{i}.{name}": p.grad
        for i, module in enumerate(modules)
        for name, p in module.named_parameters()
    }


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert x is not None and x.abs().max() > 0, name
        torch.testing.assert_close(
            x, expected[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance
        )


class Momentum(nn.Module):
    """This encoder has a buffer that changes at every call and enters the next one."""

    def __init__(self):
        super().__init__()
        self.linear, self.returned = nn.Linear(4, 4), []
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        # A new tensor takes the buffer's place.
        self.mean = 0.5 * self.mean + x.detach().mean(0)
        out = self.linear(x) * self.calls.clone() + self.mean
        self.returned.append(out.detach())
        return out
