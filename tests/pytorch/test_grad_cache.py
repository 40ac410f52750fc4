"""Gradient caching gives the gradients of the whole batch with the activations of one chunk."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from support.encoders import Momentum, assert_same, chunked, gradients, mlp
from torch import nn

import fused_contrastive as fc
from fused_contrastive import cached_step


def test_one_encoder_for_two_views(device):
    """The losses and gradients are those of the whole batch, and the embeddings keep their order.

    Gradients are added to what was there before. The last chunk may be smaller than the others.
    """
    torch.manual_seed(0)
    encoder, x1, x2 = (
        mlp(6, 10, 5).to(device).double(),
        *torch.randn(2, 11, 6, dtype=torch.float64, device=device),
    )
    twin = copy.deepcopy(encoder)
    for size in (4, 1, 11, 50):
        loss = cached_step(
            encoder, (x1, x2), lambda a, b: fc.nt_xent_loss(a, b, 0.2), chunk_size=size
        )
        expected = fc.nt_xent_loss(twin(x1), twin(x2), 0.2)
        expected.backward()
        assert not loss.requires_grad
        torch.testing.assert_close(loss, expected.detach())
        # Nothing resets the gradients, so they are sums over all sizes so far.
        assert_same(gradients(encoder), gradients(twin))


def test_several_encoders_and_what_the_loss_learns(device):
    """Several encoders work, each with its own chunk size.

    A learnable scale and a head inside the loss get their gradients once. Extra outputs are
    detached.
    """
    torch.manual_seed(1)
    image, text = mlp(6, 8, 5).to(device).double(), mlp(4, 5).to(device).double()
    head, loss_module = (
        nn.Linear(5, 3).to(device).double(),
        fc.ClipLoss(5.0, learnable=True, metrics=True).to(device),
    )
    x, t = (
        torch.randn(9, 6, dtype=torch.float64, device=device),
        torch.randn(9, 4, dtype=torch.float64, device=device),
    )

    def loss_fn(a, b):
        return loss_module(F.normalize(head(a), dim=1), F.normalize(head(b), dim=1))

    modules = (image, text, head, loss_module)
    loss, metrics = cached_step([image, text], [x, t], loss_fn, chunk_size=(2, 7))
    found = {name: g.clone() for name, g in gradients(*modules).items()}
    for module in modules:
        module.zero_grad()
    expected, wanted = loss_fn(image(x), text(t))
    expected.backward()
    torch.testing.assert_close((loss, metrics), (expected.detach(), wanted))
    assert_same(found, gradients(*modules))
    assert not any(v.requires_grad for v in (loss, *metrics.values()))


class Tower(nn.Module):
    """This encoder takes nested arguments and returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, tokens, extra, scale, flag=None):
        assert flag == "on" and scale.dim() == 0
        hidden = self.first(tokens["ids"]) * tokens["mask"][:, None] + self.second(extra[0])
        return {"pooled": torch.tanh(scale * hidden), "parts": (hidden, tokens["mask"])}


def test_nested_inputs_and_outputs(device):
    torch.manual_seed(2)
    tower = Tower().to(device)
    twin = copy.deepcopy(tower)
    tokens = {
        "ids": torch.randn(7, 3, device=device),
        "mask": torch.randint(0, 2, (7,), device=device),
    }
    extra = (torch.randn(7, 2, device=device),)
    scale = torch.tensor(0.5, device=device)
    named = {"tokens": tokens, "extra": extra, "scale": scale, "flag": "on"}
    positional = (tokens, extra, scale, "on")

    def loss_fn(*outputs):
        pooled = [out["pooled"] for out in outputs]
        assert all(torch.equal(out["parts"][1], tokens["mask"]) for out in outputs)
        return sum(
            fc.info_nce_loss(pooled[0], p + out["parts"][0])
            for p, out in zip(pooled, outputs, strict=True)
        )

    for inputs in (named, [named, positional]):
        tower.zero_grad()
        twin.zero_grad()
        loss = cached_step(tower, inputs, loss_fn, chunk_size=3)
        outputs = [twin(**named)] if inputs is named else [twin(**named), twin(*positional)]
        expected = loss_fn(*outputs)
        expected.backward()
        torch.testing.assert_close(loss, expected.detach())
        assert_same(gradients(tower), gradients(twin))


@pytest.mark.parametrize("autocast", (False, True))
def test_dropout_and_autocast(autocast, device):
    """The second encoding draws the numbers of the first, and in the same precision.

    Afterwards the generators stand where the first encoding left them.
    """
    torch.manual_seed(3)
    encoder = mlp(6, 16, 8, dropout=0.5).to(device)
    twin = copy.deepcopy(encoder)
    x1, x2 = torch.randn(2, 10, 6, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        torch.manual_seed(4)
        loss = cached_step(encoder, (x1, x2), fc.NTXentLoss(0.3), chunk_size=4)
        after = torch.rand(3, device=device)
        torch.manual_seed(4)
        z1, z2 = chunked(twin, x1, 4), chunked(twin, x2, 4)
        expected = fc.nt_xent_loss(z1, z2, 0.3)
        expected.backward()
        assert z1.dtype == (torch.bfloat16 if autocast else torch.float32)
        assert torch.equal(after, torch.rand(3, device=device))
    assert torch.equal(loss, expected.detach())
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if autocast else {}
    assert_same(gradients(encoder), gradients(twin), **tolerance)


def test_buffers_change_once(device):
    """Buffers change once, also where the encoding depends on them.

    Both encodings see the same buffers.
    """
    torch.manual_seed(5)
    encoder = Momentum().to(device)
    twin = copy.deepcopy(encoder)
    x = torch.randn(2, 7, 4, device=device)
    for _ in range(2):
        cached_step(encoder, tuple(x), fc.NTXentLoss(), chunk_size=3)
        fc.nt_xent_loss(*(chunked(twin, part, 3) for part in x)).backward()
    assert encoder.calls == twin.calls == 12
    torch.testing.assert_close(encoder.mean, twin.mean)
    assert_same(gradients(encoder), gradients(twin))


def test_batch_norm_sees_chunks(device):
    """Batch norm takes its statistics from a chunk, as documented.

    It updates the running statistics once per chunk.
    """
    torch.manual_seed(6)
    encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).to(device)
    twin = copy.deepcopy(encoder)
    x = torch.randn(2, 8, 4, device=device)
    cached_step(encoder, tuple(x), fc.NTXentLoss(), chunk_size=4)
    fc.nt_xent_loss(*(chunked(twin, part, 4) for part in x)).backward()
    for name, p in twin.named_parameters():
        torch.testing.assert_close(encoder.get_parameter(name).grad, p.grad, atol=1e-6, rtol=1e-5)
    for name, b in twin.named_buffers():
        torch.testing.assert_close(encoder.get_buffer(name), b)


def test_what_needs_no_gradient_is_run_once(device):
    """An encoder that needs no gradient runs once, and its buffers are updated once.

    Embeddings that the loss does not use are allowed. So are plain functions, with and without
    parameters.
    """
    calls = []
    query, key = (
        mlp(4, 5).to(device),
        nn.Sequential(mlp(4, 5), nn.BatchNorm1d(5)).to(device).requires_grad_(False),
    )
    key.register_forward_hook(lambda *_: calls.append("key"))
    x = torch.randn(6, 4, device=device)
    loss = cached_step((query, key), (x, x), fc.InfoNCELoss(), chunk_size=2)
    assert calls == ["key"] * 3 and key[1].num_batches_tracked == 3 and loss.isfinite()
    assert all(p.grad is not None for p in query.parameters())
    query.zero_grad()
    second = cached_step(
        (lambda v: query(v), torch.no_grad()(lambda v: key.eval()(v))),
        (x, x),
        lambda q, k: fc.info_nce_loss(q, q + 1),
        chunk_size=2,
    )
    fc.info_nce_loss(z := query(x), z + 1).backward()
    assert second.isfinite()
    halves = [p.grad / 2 for p in query.parameters()]
    query.zero_grad()
    fc.info_nce_loss(z := query(x), z + 1).backward()
    for p, half in zip(query.parameters(), halves, strict=True):
        torch.testing.assert_close(p.grad, half)


def test_inputs_that_are_leaves(device):
    encoder = mlp(4, 5).to(device)
    x, y = (torch.randn(7, 4, device=device, requires_grad=True) for _ in range(2))
    cached_step(encoder, (x, y), fc.NTXentLoss(), chunk_size=3)
    for found, expected in zip(
        (x, y), torch.autograd.grad(fc.nt_xent_loss(encoder(x), encoder(y)), (x, y)), strict=True
    ):
        torch.testing.assert_close(found.grad, expected)
    with pytest.raises(ValueError, match=r"inputs\[1\] must be detached"):
        cached_step(encoder, (x, y * 2), fc.NTXentLoss(), chunk_size=3)


def test_grad_scaler(device):
    """The gradients are those of the scaled loss.

    The scaler unscales them as after any backward pass.
    """
    encoder = mlp(4, 5).double().to(device)
    twin = copy.deepcopy(encoder)
    x = torch.randn(2, 6, 4, dtype=torch.float64, device=device)
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    loss = cached_step(encoder, tuple(x), fc.NTXentLoss(), chunk_size=4, scaler=scaler)
    expected = fc.nt_xent_loss(*(twin(part) for part in x))
    (256 * expected).backward()
    torch.testing.assert_close(loss, expected.detach())
    assert_same(gradients(encoder), gradients(twin))
    before = encoder[0].weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(encoder[0].weight.detach(), before - 0.1 * twin[0].weight.grad / 256)


def peak_of_saved_tensors(step) -> int:
    """Returns the largest number of elements that graphs hold at one time during `step`."""
    held = {"now": 0, "peak": 0}

    class Held:
        def __init__(self, x):
            self.x = x
            held["now"] += x.numel()
            held["peak"] = max(held["peak"], held["now"])
            weakref.finalize(self, release, x.numel())

    def release(count):
        held["now"] -= count

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda packed: packed.x):
        step()
    gc.collect()
    assert held["now"] == 0
    return held["peak"]


def test_peak_of_activations(device):
    """The peak holds the activations of one chunk and those of the loss.

    A chunk that is a quarter of the batch needs a quarter of the activations.
    """
    encoder = mlp(8, 256, 256, 4).to(device)
    x = torch.randn(2, 64, 8, device=device)
    loss = fc.NTXentLoss()
    whole = peak_of_saved_tensors(lambda: loss(*(encoder(part) for part in x)).backward())
    cached = peak_of_saved_tensors(lambda: cached_step(encoder, tuple(x), loss, chunk_size=16))
    parameters = sum(p.numel() for p in encoder.parameters())
    assert whole > 2 * 64 * 3 * 256 and cached - parameters < (whole - parameters) / 6, (
        whole,
        cached,
    )


def test_no_rows(device):
    encoder = mlp(4, 5).to(device)
    x = torch.randn(0, 4, device=device)
    loss = cached_step(encoder, (x, x), fc.NTXentLoss(reduction="sum"), chunk_size=3)
    assert loss == 0 and all((p.grad == 0).all() for p in encoder.parameters())


X = torch.randn(6, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"chunk_size": 0}, ValueError, "chunk_size must be positive"),
        ({"chunk_size": 2.0}, TypeError, "chunk_size must be an integer"),
        ({"chunk_size": True}, TypeError, "chunk_size must be an integer"),
        ({"chunk_size": (2, 2, 2)}, ValueError, "chunk_size must be one number or one per input"),
        (
            {"encoders": (nn.Identity(),)},
            ValueError,
            "encoders must be one callable or one per input, got 1 for 2",
        ),
        ({"encoders": (nn.Identity(), None)}, TypeError, r"encoders\[1\] must be callable"),
        ({"inputs": ()}, ValueError, "encoders must be one callable or one per input, got 0 for 0"),
        ({"inputs": (X, ["a"] * 6)}, TypeError, r"inputs\[1\] must be or hold a tensor"),
        ({"inputs": (X, torch.tensor(1.0))}, TypeError, r"inputs\[1\] must be or hold a tensor"),
        (
            {"inputs": ((X, X[:5]), X)},
            ValueError,
            r"inputs\[0\] must hold tensors of equally many rows, got \[5, 6\]",
        ),
        (
            {"encoders": lambda x: x[:1]},
            ValueError,
            r"encoders\[0\] must return tensors with one row per row",
        ),
        (
            {"encoders": lambda x: x.sum()},
            ValueError,
            r"encoders\[0\] must return tensors with one row per row",
        ),
        ({"encoders": lambda x: None}, ValueError, r"encoders\[0\] must return .* got NoneType"),
        (
            {"loss_fn": lambda a, b: a},
            ValueError,
            r"loss_fn must return a 0-d tensor.* got shape \(6, 4\)",
        ),
        (
            {"loss_fn": lambda a, b: 1.0},
            ValueError,
            r"loss_fn must return a 0-d tensor.* got float",
        ),
    ),
)
def test_errors(arguments, error, message):
    given = {
        "encoders": lambda x: x,
        "inputs": (X, X),
        "loss_fn": fc.NTXentLoss(),
        "chunk_size": 2,
    } | arguments
    with pytest.raises(error, match=message):
        cached_step(**given)


def test_nothing_to_train():
    """In an evaluation, and where nothing is trained, it returns the loss and no gradient."""
    encoder = torch.nn.Linear(6, 4)
    x1, x2 = torch.randn(8, 6), torch.randn(8, 6)
    expected = fc.nt_xent_loss(encoder(x1), encoder(x2)).detach()
    call = [encoder, encoder], [x1, x2], fc.nt_xent_loss
    with torch.no_grad():
        torch.testing.assert_close(fc.cached_step(*call, chunk_size=3), expected)
    encoder.requires_grad_(False)
    torch.testing.assert_close(fc.cached_step(*call, chunk_size=3), expected)
    assert all(parameter.grad is None for parameter in encoder.parameters())
