"""A cached loss has a backward pass of its own, for trainers that call it themselves."""

import copy

import pytest
import torch
from support.encoders import Momentum, assert_same, chunked, gradients, mlp
from torch import nn

import fused_contrastive as fc
from fused_contrastive import cached_forward, cached_step


def test_upstream_and_other_losses(device):
    """Gradients are those of the whole batch, also of what the loss learns, times the upstream."""
    torch.manual_seed(0)
    encoder, criterion = mlp(6, 5).to(device).double(), fc.NTXentLoss(0.3, learnable=True)
    criterion, twins = criterion.to(device), []
    x1, x2 = torch.randn(2, 11, 6, dtype=torch.float64, device=device)
    for cached in (True, False):
        twin, loss_of = copy.deepcopy(encoder), copy.deepcopy(criterion)
        for step in range(2):
            # This is the accumulation of gradients, with a penalty beside the loss.
            if cached:
                loss = cached_forward(twin, (x1, x2 + step), loss_of, chunk_size=4)
            else:
                loss = loss_of(twin(x1), twin(x2 + step))
            penalty = 0.1 * twin[0].weight.square().sum()
            assert loss.requires_grad
            (loss / 2 + penalty).backward()
        twins.append((loss.detach(), gradients(twin, loss_of)))
    (found, ours), (expected, theirs) = twins
    torch.testing.assert_close(found, expected)
    assert_same(ours, theirs)


def test_further_outputs_are_detached(device):
    encoder, x = mlp(6, 5).to(device), torch.randn(2, 8, 6, device=device)
    loss, metrics = cached_forward(encoder, tuple(x), fc.NTXentLoss(metrics=True), chunk_size=3)
    assert loss.requires_grad and not any(v.requires_grad for v in metrics.values())
    loss.backward()
    expected, wanted = fc.nt_xent_loss(*(encoder(part) for part in x), metrics=True)
    torch.testing.assert_close((loss.detach(), metrics), (expected.detach(), wanted))


@pytest.mark.parametrize("inside", (False, True))
@pytest.mark.parametrize("autocast", (False, True))
def test_dropout_and_autocast(autocast, inside, device):
    """The second encoding has the random numbers and the precision of the first.

    That is so wherever the backward pass is called.
    """
    torch.manual_seed(3)
    encoder = mlp(6, 16, 8, dropout=0.5).to(device)
    twin, x = copy.deepcopy(encoder), torch.randn(2, 10, 6, device=device)
    seen = []
    encoder.register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    context = torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast)
    with context:
        torch.manual_seed(4)
        loss = cached_forward(encoder, tuple(x), fc.NTXentLoss(0.3), chunk_size=4)
        if inside:
            loss.backward()
    if not inside:
        torch.rand(5, device=device)
        loss.backward()
    assert len(seen) == 12
    assert all(torch.equal(*pair) for pair in zip(seen[:6], seen[6:], strict=True))
    with context:
        torch.manual_seed(4)
        expected = fc.nt_xent_loss(*(chunked(twin, part, 4) for part in x), 0.3)
    expected.backward()
    assert torch.equal(loss.detach(), expected.detach())
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if autocast else {}
    assert_same(gradients(encoder), gradients(twin), **tolerance)


def test_grad_scaler(device):
    encoder, x = mlp(6, 5).to(device), torch.randn(2, 8, 6, device=device)
    twin = copy.deepcopy(encoder)
    scaler = torch.amp.GradScaler(device.type, init_scale=64.0)
    scaler.scale(cached_forward(encoder, tuple(x), fc.NTXentLoss(), chunk_size=3)).backward()
    cached_step(twin, tuple(x), lambda *z: 64 * fc.nt_xent_loss(*z), chunk_size=3)
    assert_same(gradients(encoder), gradients(twin))


@pytest.mark.parametrize("context", (torch.no_grad, torch.inference_mode))
@pytest.mark.parametrize("call", (cached_forward, cached_step))
def test_evaluation(call, context, device):
    encoder, x = mlp(6, 5).to(device), torch.randn(2, 8, 6, device=device)
    expected = fc.nt_xent_loss(*(encoder(part) for part in x)).detach()
    with context():
        loss = call(encoder, tuple(x), fc.nt_xent_loss, chunk_size=3)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected)


def test_nothing_to_train(device):
    encoder = mlp(6, 5).to(device).requires_grad_(False)
    x = torch.randn(2, 8, 6, device=device)
    assert not cached_forward(encoder, tuple(x), fc.nt_xent_loss, chunk_size=3).requires_grad


def test_buffers_change_in_the_backward_pass(device):
    torch.manual_seed(5)
    encoder, x = Momentum().to(device), torch.randn(2, 7, 4, device=device)
    twin = copy.deepcopy(encoder)
    loss = cached_forward(encoder, tuple(x), fc.NTXentLoss(), chunk_size=3)
    assert encoder.calls == 0
    loss.backward()
    fc.nt_xent_loss(*(chunked(twin, part, 3) for part in x)).backward()
    assert encoder.calls == twin.calls == 6
    torch.testing.assert_close(encoder.mean, twin.mean)
    assert_same(gradients(encoder), gradients(twin))


def test_there_is_one_backward_pass(device):
    encoder, x = mlp(6, 5).to(device), torch.randn(2, 8, 6, device=device)
    loss = cached_forward(encoder, tuple(x), fc.NTXentLoss(), chunk_size=3)
    loss.backward()
    with pytest.raises(RuntimeError, match="cached_forward has one backward pass"):
        loss.backward()


class Bag(nn.Module):
    """Sums embeddings of packed sequences, as EmbeddingBag takes them."""

    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 5, mode="sum")

    def forward(self, tokens, ends):
        return self.bag(tokens, torch.cat([ends.new_zeros(1), ends[:-1]]))


def packed(x, size):
    """Cuts sequences that stand one behind the other."""
    ends = [0, *x["ends"].tolist()]
    chunks = []
    for start in range(0, len(ends) - 1, size):
        first, last = ends[start], ends[min(start + size, len(ends) - 1)]
        own = x["ends"][start : start + size] - first
        chunks.append({"tokens": x["tokens"][first:last], "ends": own})
    return chunks


@pytest.mark.parametrize("call", (cached_forward, cached_step))
def test_split(call, device):
    """Inputs of another layout are cut by a function, beside others that are cut into rows."""
    torch.manual_seed(6)
    bag, encoder = Bag().to(device), mlp(6, 5).to(device)
    lengths = torch.tensor([3, 1, 4, 2, 2, 5, 1], device=device)
    texts = {"tokens": torch.randint(20, (18,), device=device), "ends": lengths.cumsum(0)}
    x, twins = torch.randn(7, 6, device=device), copy.deepcopy([bag, encoder])
    loss = call(
        [bag, encoder], [texts, x], fc.info_nce_loss, chunk_size=(3, 2), split=(packed, None)
    )
    if call is cached_forward:
        loss.backward()
    expected = fc.info_nce_loss(twins[0](**texts), twins[1](x))
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach())
    assert_same(gradients(bag, encoder), gradients(*twins))


X = torch.randn(6, 4)


@pytest.mark.parametrize(
    ("split", "error", "message"),
    (
        (2, TypeError, "split must be callable or None, got int"),
        ((None,), ValueError, "split must be one function or one per input, got 1 for 2"),
        (lambda x, size: [], ValueError, r"split must return at least one chunk of inputs\[0\]"),
        (
            lambda x, size: [x[:, :0].sum()],
            ValueError,
            r"encoders\[0\] must return tensors with one row per sample, got shape \(\)",
        ),
    ),
)
def test_errors_of_split(split, error, message):
    with pytest.raises(error, match=message):
        cached_forward(nn.Identity(), (X, X), fc.NTXentLoss(), chunk_size=2, split=split)


def test_errors():
    for arguments, error, message in (
        ({"chunk_size": 0}, ValueError, "chunk_size must be positive"),
        ({"encoders": None}, TypeError, r"encoders\[0\] must be callable"),
        ({"loss_fn": lambda a, b: a}, ValueError, "loss_fn must return a 0-d tensor"),
    ):
        given = {"encoders": nn.Identity(), "inputs": (X, X), "loss_fn": fc.NTXentLoss()}
        with pytest.raises(error, match=message):
            cached_forward(**{"chunk_size": 2, **given, **arguments})
