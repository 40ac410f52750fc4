"""The log-sum-exp of each row's negatives comes with the metrics, from the pass that the loss has.

SogCLR's moving averages are built on it in examples/sogclr.py.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fused_contrastive as fc

N, D, T = 6, 4, 0.2
KEYS = torch.tensor([0, 1, 0, 2, 3, 1])
BIAS = torch.tensor([0.3, -1.0, 0.0, 0.5, 2.0, -0.2], dtype=torch.float64)
NOT_SELF = ~torch.eye(N, dtype=torch.bool)
EXAMPLE = Path(__file__).parents[2] / "examples" / "sogclr.py"


def views(device, count=2):
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [x.to(device).requires_grad_() for x in drawn]


def dense(logits, keep):
    return logits.masked_fill(~keep, -math.inf).logsumexp(-1)


def cosines(a, b):
    return (F.normalize(a.detach().cpu(), dim=-1) @ F.normalize(b.detach().cpu(), dim=-1).mT) / T


def two_views(a, b):
    """The logits of two stacked views, and where neither self nor partner is."""
    z = torch.cat([a, b])
    return cosines(z, z), NOT_SELF.repeat(2, 2)


def test_two_views(any_backend, device):
    a, b = views(device)
    logits, keep = two_views(a, b)
    options = {"reduction": "none", "metrics": True, "backend": any_backend}
    for function in (fc.nt_xent_loss, fc.dcl_loss, fc.dclw_loss):
        found = function(a, b, T, **options)[1]["logsumexp"]
        torch.testing.assert_close(found.cpu(), dense(logits, keep))
    vectors = {"keys": KEYS.to(device), "bias": BIAS.to(device)}
    found = fc.nt_xent_loss(a, b, T, **vectors, **options)[1]["logsumexp"]
    other = (KEYS[:, None] != KEYS).repeat(2, 2)
    torch.testing.assert_close(found.cpu(), dense(logits + BIAS.repeat(2), other))
    # The larger weights of hard negatives are in it, and a margin is not.
    found = fc.nt_xent_loss(a, b, T, hardness=2.0, margin=0.3, **options)[1]["logsumexp"]
    torch.testing.assert_close(found.cpu(), dense(logits * (1 + 2 * T), keep))
    assert not found.requires_grad


def test_both_directions_are_two_rows(any_backend, device):
    a, b = views(device)
    logits = cosines(a, b)
    expected = torch.stack([dense(logits, NOT_SELF), dense(logits.T, NOT_SELF)])
    options = {"reduction": "sum", "metrics": True, "backend": any_backend}
    found = fc.info_nce_loss(a, b, temperature=T, symmetric=True, **options)[1]["logsumexp"]
    torch.testing.assert_close(found.cpu(), expected)
    u, v = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    found = fc.clip_loss(u, v, 1 / T, 3.0, **options)[1]["logsumexp"]
    torch.testing.assert_close(found.cpu(), expected + 3)
    bias = (None, BIAS.to(device))
    found = fc.clip_loss(u, v, 1 / T, bias=bias, **options)[1]["logsumexp"]
    expected[0] = dense(logits + BIAS, NOT_SELF)
    torch.testing.assert_close(found.cpu(), expected)


def test_other_candidates(any_backend, device):
    """Queues, paired negatives, targets, and the candidates of the ranking loss."""
    a, b, *more = views(device, 5)
    options = {"metrics": True, "backend": any_backend}
    queue = torch.cat(more)
    found = fc.info_nce_loss(a, b, queue, T, **options)[1]["logsumexp"]
    torch.testing.assert_close(found.cpu(), cosines(a, queue).logsumexp(1))
    paired = torch.stack(more, 1)
    found = fc.info_nce_loss(a, b, paired, T, negative_mode="paired", **options)[1]["logsumexp"]
    own = cosines(a.unsqueeze(1), paired).squeeze(1)
    torch.testing.assert_close(found.cpu(), own.logsumexp(1))
    target = torch.arange(N).roll(1)
    found = fc.n_pairs_loss(a, b, target.to(device), **options)[1]["logsumexp"]
    keep = target[:, None] != torch.arange(N)
    torch.testing.assert_close(found.cpu(), dense(T * cosines(a, b), keep))
    ranking = fc.multiple_negatives_ranking_loss
    found = ranking(a, b, paired, T, **options)[1]["logsumexp"]
    forward = torch.cat([cosines(a, b).masked_fill(~NOT_SELF, -math.inf), cosines(a, queue)], 1)
    torch.testing.assert_close(found.cpu(), forward.logsumexp(1))
    both = {"directions": ("query_to_doc", "doc_to_query"), **options}
    backward = cosines(b, a).masked_fill(~NOT_SELF, -math.inf)
    found = ranking(a, b, paired, T, **both)[1]["logsumexp"]
    torch.testing.assert_close(found.cpu(), torch.cat([forward, backward], 1).logsumexp(1))
    found = ranking(a, b, paired, T, **both, partition="per_direction")[1]["logsumexp"]
    expected = torch.stack([forward.logsumexp(1), backward.logsumexp(1)])
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("positives", ("out", "in", "pairs"))
def test_sup_con(positives, any_backend, device):
    """The negatives are the rows of other classes, and rows stand as the losses do."""
    a, b = views(device)
    options = {"metrics": True, "reduction": "none", "positives": positives}
    options["backend"] = any_backend
    labels = KEYS.to(device)
    loss, metrics = fc.sup_con_loss(a, labels, T, **options)
    other = KEYS[:, None] != KEYS
    torch.testing.assert_close(metrics["logsumexp"].cpu(), dense(cosines(a, a), other))
    logits, keep = two_views(a, b)
    for given, kept in ((labels, other.repeat(2, 2)), (None, keep)):
        loss, metrics = fc.sup_con_loss(torch.stack([a, b], 1), given, T, **options)
        assert metrics["logsumexp"].shape == loss.shape
        expected = dense(logits, kept).view(2, N).T
        torch.testing.assert_close(metrics["logsumexp"].cpu(), expected)


class Calls(TorchDispatchMode):
    """This mode counts the calls of the package's own ops."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace == "fused_contrastive"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", ({}, {"bias": BIAS}, {"label_smoothing": 0.1}), ids=str)
def test_it_takes_no_pass_of_its_own(options):
    a, b = views("cpu")
    for function in (fc.nt_xent_loss, fc.clip_loss):
        counts = []
        for metrics in (False, True):
            with Calls() as calls:
                function(a, b, 5.0, **options, metrics=metrics, backend="panels")
            counts.append(calls.count)
        assert counts[0] == counts[1] > 0


def test_rows_without_negatives(any_backend, device):
    a, b = (x[:1] for x in views(device))
    found = fc.clip_loss(a, b, 2.0, metrics=True, backend=any_backend)[1]["logsumexp"]
    assert found.shape == (2, 1) and (found == -math.inf).all()


def test_siglip_has_none(device):
    a, b = views(device)
    assert "logsumexp" not in fc.siglip_loss(a, b, 2.0, -1.0, metrics=True)[1]


def example():
    spec = importlib.util.spec_from_file_location("sogclr", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sogclr_is_the_algorithm_of_the_paper(device):
    """Averages and gradients of two batches are those of dense code (algorithm 1)."""
    gamma, samples = 0.3, 10
    moving = example().SogCLR(samples, T, gamma).to(device, torch.float64)
    u = torch.zeros(samples, dtype=torch.float64)
    for index in (torch.tensor([7, 2, 0, 9, 4, 1]), torch.tensor([3, 2, 5, 9, 4, 8])):
        a, b = views(device)
        value = moving(a, b, index.to(device))
        found = torch.autograd.grad(value, (a, b))
        c, d = (x.detach().cpu().requires_grad_() for x in (a, b))
        z = F.normalize(torch.cat([c, d]), dim=1)
        logits = z @ z.T / T
        g = (logits.exp() * NOT_SELF.repeat(2, 2)).sum(1) / (2 * (N - 1))
        pair, old = g.detach().view(2, N).mean(0), u[index]
        u[index] = torch.where(old == 0, pair, (1 - gamma) * old + gamma * pair)
        torch.testing.assert_close(moving.log_u.exp().cpu(), u)
        # The average is a constant here.
        surrogate = (g / u[index].repeat(2) - logits.diagonal(N).repeat(2)).mean()
        for x, y in zip(found, torch.autograd.grad(surrogate, (c, d)), strict=True):
            torch.testing.assert_close(x.cpu(), y)


def test_sogclr_example_runs(capsys):
    found = example().main(["--epochs", "40"])
    assert found["SogCLR"] < 0.9 * found["DCL"]
    assert "miss the gradient of all by" in capsys.readouterr().out
