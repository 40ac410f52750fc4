"""Every transform of torch.func gives for the similarity family what it gives for eager.

The transforms are grad, vmap, jacrev, jacfwd, jvp, hessian, and compositions of them.
"""

import pytest
import torch
from conftest import is_interpreted
from support import cases, uses
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import fused_contrastive as fc

NAMES = [case.name for case in cases.LOSSES if case.function != "distill_clip_loss"]
INTERPRETED = {
    "case": ("nt_xent",),
    "transform": ("per-sample gradients", "hessian-vector product"),
    "use": ("all-one-columns-bias-normalize", "same_key-two-offset1-columns-bias"),
}
pytestmark = [pytest.mark.no_poison, pytest.mark.interpreter(**INTERPRETED)]


def draw(name, device, size=3, n=4, d=3):
    """Returns `size` draws of a case's arguments, stacked."""
    draws = [cases.BY_NAME[name].draw(n, d, torch.float64, device, seed) for seed in range(size)]
    return [
        torch.stack([x.detach() for x in values])
        for values in zip(*(draw.values() for draw in draws), strict=True)
    ]


def loss_of(name, backend, device, reduction="mean", n=4, d=3):
    case = cases.BY_NAME[name]
    names = list(case.draw(n, d))
    return lambda *values: case.loss(
        dict(zip(names, values, strict=True)), backend, reduction=reduction
    )


def every(values):
    return tuple(range(len(values)))


def penalty(loss):
    """Returns a function that computes a gradient penalty: the loss and its squared gradient."""
    return lambda *x: loss(*x) + sum(g.square().sum() for g in grad(loss, every(x))(*x))


def samples(x):
    """Returns the first of the stacked draws."""
    return [v[0] for v in x]


TRANSFORMS = {
    "grad": lambda loss, x: grad(loss, every(x))(*samples(x)),
    "vmap": lambda loss, x: vmap(loss)(*x),
    "vmap over the first argument": lambda loss, x: vmap(loss, (0, *[None] * (len(x) - 1)))(
        x[0], *samples(x)[1:]
    ),
    "vmap over the second argument": lambda loss, x: vmap(loss, (None, 0, *[None] * (len(x) - 2)))(
        x[0][0], x[1], *samples(x)[2:]
    ),
    "vmap over the last argument": lambda loss, x: vmap(loss, (*[None] * (len(x) - 1), 0))(
        *samples(x)[:-1], x[-1]
    ),
    "vmap of another dimension": lambda loss, x: vmap(loss, (1, *[0] * (len(x) - 1)))(
        x[0].movedim(0, 1), *x[1:]
    ),
    "vmap of vmap": lambda loss, x: vmap(vmap(loss))(*(torch.stack([v, v.flip(0)]) for v in x)),
    "per-sample gradients": lambda loss, x: vmap(grad(loss, every(x)))(*x),
    "per-sample gradients of the first argument": lambda loss, x: vmap(
        grad(loss), (0, *[None] * (len(x) - 1))
    )(x[0], *samples(x)[1:]),
    "gradient of vmap": lambda loss, x: grad(lambda *v: vmap(loss)(*v).square().sum(), every(x))(
        *x
    ),
    "jvp": lambda loss, x: jvp(loss, tuple(samples(x)), tuple(v[1] for v in x)),
    "hessian": lambda loss, x: hessian(loss, every(x))(*samples(x)),
    "jacrev of jacrev": lambda loss, x: jacrev(jacrev(loss), every(x))(*samples(x)),
    "jacrev of jacfwd": lambda loss, x: jacrev(jacfwd(loss), every(x))(*samples(x)),
    "hessian-vector product": lambda loss, x: jvp(
        lambda *v: grad(loss, every(x))(*v), tuple(samples(x)), tuple(v[1] for v in x)
    ),
    "per-sample hessians": lambda loss, x: vmap(hessian(loss))(*x),
    "gradient of a gradient penalty": lambda loss, x: grad(penalty(loss), every(x))(*samples(x)),
    "per-sample gradients of a gradient penalty": lambda loss, x: vmap(
        grad(penalty(loss), every(x))
    )(*x),
}
RUNS = [(name, transform) for name in ("nt_xent", "clip") for transform in TRANSFORMS]
RUNS += [
    (name, t)
    for name in NAMES
    if name not in ("nt_xent", "clip")
    for t in ("per-sample gradients", "hessian")
]


def assert_like_eager(transform, name, backend, device, **options):
    x = draw(name, device)
    found = transform(loss_of(name, backend, device, **options), x)
    torch.testing.assert_close(
        found, transform(loss_of(name, "eager", device, **options), x), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize(("name", "transform"), RUNS)
def test_transforms(name, transform, backend, device):
    assert_like_eager(TRANSFORMS[transform], name, backend, device)


@pytest.mark.parametrize("jacobian", (jacrev, jacfwd))
@pytest.mark.parametrize("name", ("nt_xent", "clip", "info_nce-queue"))
def test_jacobians(name, jacobian, backend, device):
    """The Jacobians of the loss vector are those of eager.

    They take a batch of upstream gradients (jacrev) or of tangents (jacfwd).
    """
    if is_interpreted(backend):
        pytest.skip("dozens of calls in the interpreter and the host shim")
    assert_like_eager(
        lambda loss, x: jacobian(loss, every(x))(*samples(x)),
        name,
        backend,
        device,
        reduction="none",
    )


@pytest.mark.parametrize("use", uses.USES, ids=str)
def test_vmap_of_the_primitive(use, backend, device):
    """The primitive's values and gradients under vmap are those of eager.

    Once keys, bias and groups are mapped, too, and once only `a` is mapped.
    """
    named = [use.draw(5, 5, 3, torch.float64, device, seed) for seed in range(3)]
    keys = list(named[0])
    stacked = [torch.stack([x[k].detach() for x in named]) for k in keys]

    def transformed(label, mapped):
        def total(*values):
            out = use.apply(dict(zip(keys, values, strict=True)), label)
            return sum(o.exp().sum() for o in out)

        differentiated = tuple(n for n, x in enumerate(stacked) if x.is_floating_point())
        values = [x if m else x[0] for x, m in zip(stacked, mapped, strict=True)]
        return vmap(grad(total, differentiated), tuple(0 if m else None for m in mapped))(*values)

    for mapped in ([True] * len(keys), [True] + [False] * (len(keys) - 1)):
        found, expected = (transformed(label, mapped) for label in (backend, "eager"))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_vmap_of_metrics_and_targets(backend, device):
    """vmap maps the metrics like the loss, and also the target of n_pairs.

    The values of a mapped target are not checked.
    """
    z1, z2, temperature = draw("nt_xent", device)
    for x, y in zip(
        *(
            vmap(lambda *x, label=label: fc.nt_xent_loss(*x, metrics=True, backend=label))(
                z1, z2, temperature
            )
            for label in (backend, "eager")
        ),
        strict=True,
    ):
        torch.testing.assert_close(x, y)
    target = torch.stack([torch.randperm(4, device=device) for _ in range(3)])
    found, expected = (
        vmap(grad(lambda *x, label=label: fc.n_pairs_loss(*x, backend=label)))(z1, z2, target)
        for label in (backend, "eager")
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_vmap_of_other_dtypes(dtype, backend, device):
    """vmap gives the same bits as one call for each element."""
    z = torch.randn(3, 5, 8, device=device).to(dtype)
    function = grad(lambda x: fc.nt_xent_loss(x, x.flip(0), backend=backend))
    torch.testing.assert_close(vmap(function)(z), torch.stack([function(x) for x in z]))


def test_batched_upstream_gradients(backend, device):
    """torch.autograd.grad takes a batch of upstream gradients with is_grads_batched.

    The graph is made outside torch.func.
    """
    z1, z2, temperature = (x.requires_grad_() for x in samples(draw("nt_xent", device)))
    results = []
    for label in (backend, "eager"):
        loss = fc.nt_xent_loss(z1, z2, temperature, reduction="none", backend=label)
        unit = torch.eye(len(loss), dtype=loss.dtype, device=device)
        results.append(
            torch.autograd.grad(loss, (z1, z2, temperature), unit, is_grads_batched=True)
        )
    torch.testing.assert_close(*results)


def test_forward_mode(backend, device):
    """Dual tensors outside torch.func carry the tangents that eager gives.

    The gradient that is taken inside has such a tangent, too, with and without a graph of its own.
    """
    (z1, t1), (z2, t2), _ = ((x[0], x[1]) for x in draw("nt_xent", device))
    for create_graph in (False, True):
        results = []
        for label in (backend, "eager"):
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(z1.clone().requires_grad_(), t1)
                other = torch.autograd.forward_ad.make_dual(z2, t2)
                loss = fc.nt_xent_loss(dual, other, backend=label)
                (gradient,) = torch.autograd.grad(loss, dual, create_graph=create_graph)
                results.append(
                    [torch.autograd.forward_ad.unpack_dual(x).tangent for x in (loss, gradient)]
                )
        torch.testing.assert_close(*results)


def test_functional_call(backend, device):
    """A module's learned temperature can be an argument, here of an ensemble of temperatures."""
    module = fc.NTXentLoss(0.3, learnable=True, backend=backend).to(device, torch.float64)
    eager = fc.NTXentLoss(0.3, learnable=True, backend="eager").to(device, torch.float64)
    z1, z2, temperature = draw("nt_xent", device)
    found, expected = (
        vmap(grad(lambda t, m=m: functional_call(m, {"log_temperature": t}, (z1[0], z2[0]))))(
            temperature.log()
        )
        for m in (module, eager)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "transform", ("per-sample gradients", "hessian", "per-sample gradients of a gradient penalty")
)
def test_inside_compiled_code(transform, device):
    """Compiled code traces the transforms into one graph.

    In this way compiled code can take second derivatives.
    """
    if transform == "hessian" and torch.__version__ < "2.12":
        pytest.skip("torch 2.11 cannot trace a Hessian of several arguments, of whatever function")
    torch.compiler.reset()
    x = draw("clip", device)
    loss = loss_of("clip", None, device)
    compiled = torch.compile(
        lambda *v: TRANSFORMS[transform](loss, v), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*x), TRANSFORMS[transform](loss, x))
    torch.compiler.reset()


def test_jvp_inside_compiled_code(device):
    torch.compiler.reset()
    primals, tangents = ([v[n].clone() for v in draw("nt_xent", device)] for n in (0, 1))

    def tangent(z1, z2, temperature, t1, t2, t):
        return jvp(fc.nt_xent_loss, (z1, z2, temperature), (t1, t2, t))

    compiled = torch.compile(tangent, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*primals, *tangents), tangent(*primals, *tangents))
    torch.compiler.reset()
