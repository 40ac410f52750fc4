"""Every backend reproduces the documents that the project started from.

The documents have printed numbers and double loops.
"""

import math

import numpy as np
import pytest
import torch
from conftest import is_interpreted
from oracles import similarity as oracle

import fused_contrastive

SIMILARITIES = (
    (1.0000, 0.7281, 0.8607, 0.7395, 0.8699, 0.9070),
    (0.7281, 1.0000, 0.6962, 0.6181, 0.7495, 0.8019),
    (0.8607, 0.6962, 1.0000, 0.8281, 0.7893, 0.7802),
    (0.7395, 0.6181, 0.8281, 1.0000, 0.7616, 0.7524),
    (0.8699, 0.7495, 0.7893, 0.7616, 1.0000, 0.9197),
    (0.9070, 0.8019, 0.7802, 0.7524, 0.9197, 1.0000),
)
LOSSES = (1.6937, 1.5806, 1.6216, 1.6122, 1.6801, 1.6638)
MEAN = 1.6420


def printed_views() -> tuple[torch.Tensor, torch.Tensor]:
    """Return six unit vectors whose cosines are the printed matrix.

    They are its eigenvectors times the roots of its eigenvalues.
    """
    values, vectors = np.linalg.eigh(np.array(SIMILARITIES))
    assert values.min() > 0, "the printed matrix is positive definite, so the embedding is exact"
    z = torch.from_numpy(vectors * np.sqrt(values))
    return z[:3].clone(), z[3:].clone()


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_printed_numbers(dtype, any_backend, device):
    """The notebook's similarities, losses and mean are right to their four printed digits.

    The printed similarities are off by up to 5e-5.
    """
    z1, z2 = (z.to(device, dtype) for z in printed_views())
    z = torch.cat([z1, z2])
    torch.testing.assert_close(
        (z @ z.T).cpu(), torch.tensor(SIMILARITIES, dtype=dtype), atol=1e-6, rtol=0
    )
    loss = fused_contrastive.nt_xent_loss(z1, z2, 1.0, reduction="none", backend=any_backend)
    torch.testing.assert_close(loss.cpu(), torch.tensor(LOSSES, dtype=dtype), atol=1.5e-4, rtol=0)
    mean = fused_contrastive.nt_xent_loss(z1, z2, 1.0, backend=any_backend)
    assert abs(mean.item() - MEAN) < 1e-4


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(
        (x.ravel() @ y.ravel()) / math.sqrt((x.ravel() @ x.ravel()) * (y.ravel() @ y.ravel()))
    )


def double_loop_nt_xent(zi: np.ndarray, zj: np.ndarray, tau: float) -> float:
    """Compute NT-Xent with no vectorisation at all.

    The pairs (k, k + B) count in both directions, each against every other sample.
    """
    z = np.concatenate([zi, zj])
    total = 0.0
    for k in range(len(zi)):
        for anchor, partner in ((k, k + len(zi)), (k + len(zi), k)):
            denominator = sum(
                math.exp(cosine(z[anchor], z[m]) / tau) for m in range(len(z)) if m != anchor
            )
            total -= math.log(math.exp(cosine(z[anchor], z[partner]) / tau) / denominator)
    return total / len(z)


@pytest.mark.parametrize("shape", ((5, 4), (4, 3, 2), (3, 2, 3, 2), (1, 7)))
@pytest.mark.parametrize("tau", (1, 0.3))
def test_numpy_double_loop(shape, tau, any_backend, device):
    """The loss flattens features of shape `[B, f1, ..., fn]`."""
    rng = np.random.default_rng(0)
    zi, zj = rng.standard_normal(shape), rng.standard_normal(shape)
    fused = fused_contrastive.nt_xent_loss(
        torch.from_numpy(zi).to(device), torch.from_numpy(zj).to(device), tau, backend=any_backend
    )
    assert math.isclose(
        fused.item(), double_loop_nt_xent(zi, zj, tau), rel_tol=1e-12, abs_tol=1e-12
    )


def double_loop_cpc(predictions: np.ndarray, latents: np.ndarray) -> tuple[float, float]:
    """Compute CPC batch by batch and step by step.

    The term is added after the sum over j, as the vectorised form does.
    """
    steps, batch, _ = predictions.shape
    loss, hits = 0.0, 0
    for i in range(batch):
        loss_i = 0.0
        for step in range(steps):
            own = math.exp(predictions[step, i] @ latents[step, i])
            scores = [math.exp(predictions[step, i] @ latents[step, j]) for j in range(batch)]
            loss_i += math.log(own / sum(scores))
            hits += int(np.argmax(scores)) == i
        loss += loss_i / -steps
    return loss / batch, hits / (steps * batch)


@pytest.mark.parametrize("shape", ((3, 6, 4), (1, 5, 3), (4, 1, 2)))
def test_cpc_double_loop(shape, any_backend, device):
    rng = np.random.default_rng(1)
    predictions, latents = rng.standard_normal(shape), rng.standard_normal(shape)
    loss, accuracy = fused_contrastive.cpc_loss(
        torch.from_numpy(predictions).to(device),
        torch.from_numpy(latents).to(device),
        backend=any_backend,
    )
    expected, hits = double_loop_cpc(predictions, latents)
    assert math.isclose(loss.item(), expected, rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(accuracy.item(), hits, rel_tol=1e-6)


def test_n_pairs_double_loop(any_backend, device):
    """The loss is the cross entropy of the rows of cosines of every anchor with every positive.

    An index vector and the identity agree.
    """
    rng = np.random.default_rng(2)
    anchors, positives = rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    expected = 0.0
    for i in range(6):
        scores = [math.exp(cosine(anchors[i], positives[j])) for j in range(6)]
        expected -= math.log(scores[i] / sum(scores)) / 6
    a, p = torch.from_numpy(anchors).to(device), torch.from_numpy(positives).to(device)
    for target in (
        None,
        torch.arange(6, device=device),
        torch.eye(6, device=device),
        torch.eye(6, dtype=torch.long, device=device),
    ):
        loss = fused_contrastive.n_pairs_loss(a, p, target, backend=any_backend)
        assert math.isclose(loss.item(), expected, rel_tol=1e-12)


def test_oracle_agrees_with_the_double_loops():
    """The oracle's vectors, averaged, are the numbers of the loops.

    Its gradients are the finite differences of the loops.
    """
    rng = np.random.default_rng(3)
    zi, zj, h = rng.standard_normal((4, 3)), rng.standard_normal((4, 3)), 1e-6
    loss, grads = oracle.nt_xent(zi, zj, 0.4, np.full(8, 1 / 8))
    assert math.isclose(loss.mean(), double_loop_nt_xent(zi, zj, 0.4), rel_tol=1e-12)
    for index in ((0, 0), (2, 1), (3, 2)):
        step = np.zeros_like(zi)
        step[index] = h
        slope = (
            double_loop_nt_xent(zi + step, zj, 0.4) - double_loop_nt_xent(zi - step, zj, 0.4)
        ) / (2 * h)
        assert math.isclose(grads["z1"][index], slope, rel_tol=1e-6, abs_tol=1e-8)
    slope = (double_loop_nt_xent(zi, zj, 0.4 + h) - double_loop_nt_xent(zi, zj, 0.4 - h)) / (2 * h)
    assert math.isclose(grads["temperature"], slope, rel_tol=1e-6)
    p, z = rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 4, 2))
    loss, accuracy, _ = oracle.cpc(p, z, np.ones((3, 4)))
    assert math.isclose(loss.mean(), double_loop_cpc(p, z)[0], rel_tol=1e-12)
    assert math.isclose(accuracy, double_loop_cpc(p, z)[1])


def test_mathematics_of_simple_batches(backend, device):
    """Simple batches have the losses of their closed forms.

    All rows equal give log(2B - 1), and orthogonal pairs give log(1 + (2B - 2) exp(-1 / T)).
    """
    n = 4 if is_interpreted(backend) else 40
    same = torch.ones(n, 3, device=device, dtype=torch.float64)
    assert math.isclose(
        fused_contrastive.nt_xent_loss(same, same.clone(), 0.1, backend=backend).item(),
        math.log(2 * n - 1),
        rel_tol=1e-12,
    )
    basis = torch.eye(n, device=device, dtype=torch.float64)
    expected = math.log1p((2 * n - 2) * math.exp(-1 / 0.05))
    loss = fused_contrastive.nt_xent_loss(basis, 3 * basis, 0.05, backend=backend)
    assert math.isclose(loss.item(), expected, rel_tol=1e-9)
    loss = fused_contrastive.nt_xent_loss(basis.float(), 3 * basis.float(), 0.05, backend=backend)
    assert math.isclose(loss.item(), expected, rel_tol=1e-5), (
        "float32 keeps losses of 1e-7 relative to themselves"
    )
