"""The similarity family has second derivatives, in reverse and in forward mode.

They are compared with finite differences and with the dense form's.
"""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import is_interpreted, skip_unless_served
from support import cases, sigmoid_cases, uses
from support.derivatives import derivatives, edge_inputs, nt_xent
from support.functions import LOSSES, loss_of, outputs_of, small_inputs
from support.yardstick import assert_within_yardstick

import fused_contrastive as fc
from fused_contrastive.backends.panels import _panel as panels

FEW = {
    "case": ("nt_xent", "info_nce-queue"),
    "use": ("not_self-two-offset-3-normalize-groups", "other_key-two-bias-normalize"),
}


def check(function, inputs, fast, reverse_only=False):
    """Checks forward mode, reverse over reverse, and forward over reverse.

    Unless `fast`, it checks all elements, and batches of tangents (vmap).
    """
    options = {"fast_mode": fast, "nondet_tol": 1e-12}
    if reverse_only:
        assert torch.autograd.gradgradcheck(function, inputs, **options)
        return
    assert torch.autograd.gradcheck(
        function,
        inputs,
        check_forward_ad=True,
        check_backward_ad=False,
        check_batched_forward_grad=not fast,
        **options,
    )
    assert torch.autograd.gradgradcheck(
        function, inputs, check_fwd_over_rev=True, check_batched_grad=not fast, **options
    )


def assert_equal_derivatives(function, expected, leaves):
    """Compares the derivatives in a few calls.

    gradcheck would make dozens of calls and take a minute.
    """
    for x, y in zip(derivatives(function, leaves), derivatives(expected, leaves), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


@pytest.mark.interpreter(**FEW)
@pytest.mark.parametrize("case", LOSSES, ids=lambda c: c.name)
def test_loss(case, backend, device):
    """Second derivatives are right for every argument of every loss.

    This includes temperature and logit_scale. Every element is checked where calls are fast, and
    one direction where they are slow.
    """
    skip_unless_served(backend, device, torch.float64)
    inputs = case.draw(3, 2, device=device)
    function, leaves = loss_of(case, backend, inputs), tuple(inputs.values())
    if is_interpreted(backend):
        assert_equal_derivatives(function, loss_of(case, "reference", inputs), leaves)
    else:
        fast = backend != "panels" or case.name.startswith("info_nce-paired")
        check(function, leaves, fast, reverse_only=case.function == "distill_clip_loss")


@pytest.mark.interpreter(**FEW)
@pytest.mark.parametrize("use", uses.USES, ids=str)
def test_primitive(use, backend, device):
    skip_unless_served(backend, device, torch.float64)
    named = small_inputs(use, device)
    names, function = outputs_of(use, backend, named)
    leaves = tuple(named[name] for name in names)
    if is_interpreted(backend):
        assert_equal_derivatives(function, outputs_of(use, "reference", named)[1], leaves)
    else:
        check(function, leaves, fast=backend != "panels")


@pytest.mark.interpreter(use=("other_key-two-plus-row_bias",))
@pytest.mark.parametrize("use", sigmoid_cases.USES, ids=str)
def test_sums_of_softplus(use, backend, device):
    """The primitive of the sigmoid family has the right second derivatives."""
    skip_unless_served(backend, device, torch.float64)
    named = use.draw(4, 5, 2, device=device)
    names = [name for name, x in named.items() if x.requires_grad]
    leaves = tuple(named[name] for name in names)

    def rows(*values, label=backend):
        return use.apply(named | dict(zip(names, values, strict=True)), label).rows

    if is_interpreted(backend):
        assert_equal_derivatives(rows, lambda *values: rows(*values, label="eager"), leaves)
    else:
        check(rows, leaves, fast=backend != "panels")


def errors(case, backend, n, d, dtype, device, seed, spread):
    """Returns relative errors against the dense double backward in float64."""
    inputs = case.draw(n, d, dtype, device, seed, spread=spread, temperature=0.05)
    exact = {k: x.detach().double().requires_grad_() for k, x in inputs.items()}
    found = derivatives(loss_of(case, backend, inputs), list(inputs.values()), seed)
    truth = derivatives(loss_of(case, "reference", exact), list(exact.values()), seed)
    return {
        k: cases.relative_error(x, y) for k, x, y in zip(("g", *inputs), found, truth, strict=True)
    }


@pytest.mark.interpreter(case=("nt_xent",), dtype=(torch.float32,))
@pytest.mark.everyday(keep=lambda p: (p["dtype"] == torch.float32) == (p["spread"] == 0.3))
@pytest.mark.parametrize("spread", (1.0, 0.3))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", cases.LOSSES, ids=lambda c: c.name)
def test_accuracy(case, dtype, spread, backend, device):
    """At T = 0.05 the error is at most that of eager's double backward in the same dtype.

    Errors are relative to float64. A spread of 0.3 stands for training that has converged.
    """
    n, d = (9, 16) if is_interpreted(backend) else (70, 40)
    ours, eager = (
        [
            errors(case, label, n, d, dtype, device, seed, spread)
            for seed in range(15 if n == 9 else 5)
        ]
        for label in (backend, "reference")
    )
    assert_within_yardstick(ours, eager, dtype)


@pytest.mark.everyday(keep=lambda p: p["panel"] in (7, 64))
@pytest.mark.parametrize("panel", (1, 7, 64, 1000))
@pytest.mark.parametrize("name", [case.name for case in cases.LOSSES])
def test_panels_of_any_size(name, panel, device, monkeypatch):
    """Panels of any size give the same numbers.

    There may be one row per panel, ragged panels, or several groups per panel.
    """
    case = cases.BY_NAME[name]
    inputs = case.draw(23, 5, device=device)
    expected = derivatives(loss_of(case, "panels", inputs), list(inputs.values()))
    monkeypatch.setattr(panels, "PANEL", panel)
    for x, y in zip(
        derivatives(loss_of(case, "panels", inputs), list(inputs.values())), expected, strict=True
    ):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", [case.name for case in cases.LOSSES])
def test_each_argument_alone(name, backend, device):
    """Each argument alone has eager's second derivatives, also where the negatives are fixed.

    This holds for whatever the first derivatives are of, and the second ones with respect to.
    """
    case = cases.BY_NAME[name]
    for wanted in [*([k] for k in case.draw(5, 3)), ["query", "positive_key"]]:
        found = []
        for label in (backend, "reference"):
            inputs = {k: x.detach() for k, x in case.draw(5, 3, device=device).items()}
            leaves = [inputs[k].requires_grad_() for k in wanted if k in inputs]
            if leaves:
                found.append(derivatives(lambda *_, i=inputs, b=label: case.loss(i, b), leaves))
        for x, y in zip(*found, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


def test_same_bits_across_runs(backend, device):
    case = cases.BY_NAME["info_nce-symmetric"]
    n, d = (11, 8) if is_interpreted(backend) else (200, 33)
    inputs = case.draw(n, d, torch.float32, device)
    torch.use_deterministic_algorithms(device.type == "cpu")
    try:
        first, again = (
            derivatives(loss_of(case, backend, inputs), list(inputs.values())) for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


HARDENED = {
    "nt_xent": lambda a, b, t, bias, **more: fc.nt_xent_loss(a, b, t, bias=bias, **more),
    "info_nce-paired": lambda a, b, t, bias, **more: fc.info_nce_loss(
        a,
        b,
        (a + 2 * b).flip(0)[:, None],
        t,
        negative_mode="paired",
        bias=bias[:, None] * bias.new_ones(2),
        **more,
    ),
    "clip": lambda a, b, t, bias, **more: fc.clip_loss(a, b, 1 / t, bias=(None, bias), **more),
    "ranking": lambda a, b, t, bias, **more: fc.multiple_negatives_ranking_loss(
        a, b, (bias[:, None] * a)[:, None], t, directions=("query_to_doc", "doc_to_query"), **more
    ),
}


@pytest.mark.interpreter(name=())
@pytest.mark.parametrize("name", HARDENED)
def test_hardness(name, backend, device):
    """Constant parts of the logits stay constant in forward mode and in second derivatives.

    All results are those of eager.
    """
    generator = torch.Generator().manual_seed(0)
    inputs, tangents = (
        [torch.randn(5, 3, generator=generator, dtype=torch.float64).to(device) for _ in range(2)]
        + [torch.rand((), generator=generator, dtype=torch.float64).to(device) + 0.3]
        + [torch.randn(5, generator=generator, dtype=torch.float64).to(device)]
        for _ in range(2)
    )
    results = []
    for label in (backend, "eager"):

        def loss(*x, label=label):
            return HARDENED[name](*x, hardness=2.0, backend=label)

        first = torch.func.grad(loss, (0, 1, 2, 3))
        leaves = [x.clone().requires_grad_() for x in inputs]
        once = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        twice = torch.autograd.grad(once, leaves, tangents)
        pair = torch.func.jvp(loss, tuple(inputs), tuple(tangents))
        results.append([*once, *twice, *pair, *torch.func.vjp(first, *inputs)[1](tuple(tangents))])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y)


def others(backend):
    """Returns the losses without second derivatives, of two sets ``[..., 6, 3]``."""
    more = {"backend": backend}
    return {
        "correlation": lambda a, b: fc.correlation_loss(a, b, **more),
        "barlow_twins": lambda a, b: fc.barlow_twins_loss(a, b, **more),
        "contrastive_force": lambda a, b: fc.contrastive_force(a, b, 0.5, **more).square().sum(),
        "contrastive_force_loss": lambda a, b: fc.contrastive_force_loss(
            a, b, reduction="mean", **more
        ),
        "drift": lambda a, b: fc.drift_loss(a[None], b[None], **more)[0].sum(),
    }


@pytest.mark.parametrize("name", others(None))
def test_what_raises(name, backend, device):
    """A loss without second derivatives is never silently wrong: it raises.

    So do forward mode and vmap of it. The message names the way out.
    """
    loss = others(backend)[name]
    a, b, t = (torch.randn(6, 3, dtype=torch.float64, device=device) for _ in range(3))
    torch.func.grad(loss, (0, 1))(a, b)
    stacked = torch.stack([a, t])
    leaf = a.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf, b), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivatives .* backend='eager'"):
        torch.autograd.grad(first.square().sum(), leaf)
    for call in (
        lambda: torch.func.jvp(loss, (a, b), (t, t)),
        lambda: torch.func.vmap(loss, (0, None))(stacked, b),
        lambda: torch.func.vmap(torch.func.grad(loss), (0, None))(stacked, b),
        lambda: torch.func.hessian(loss)(a, b),
    ):
        with pytest.raises(NotImplementedError, match="backend='eager'"):
            call()


def test_third_derivatives_raise(backend, device):
    """Third derivatives raise in reverse mode. So does forward mode of forward mode."""
    z1, z2, temperature = (x.detach() for x in edge_inputs("", device))

    def penalty(f):
        return lambda *x: torch.func.grad(f)(*x).square().sum()

    def loss(z1, z2, temperature):
        return nt_xent(backend)(z1, z2, temperature).sum()

    torch.func.grad(penalty(loss))(z1, z2, temperature)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.func.grad(penalty(penalty(loss)))(z1, z2, temperature)
    with pytest.raises(NotImplementedError, match="forward-mode derivatives of forward-mode"):
        torch.func.jacfwd(torch.func.jacfwd(loss))(z1, z2, temperature)
    z1.requires_grad_()
    (first,) = torch.autograd.grad(loss(z1, z2, temperature), z1, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), z1, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        second.sum().backward()


@pytest.mark.parametrize("name", ("nt_xent", "info_nce-queue", "clip"))
def test_autocast(name, backend, device):
    """Under autocast the second derivatives are those of the rounded embeddings, in float32.

    It does not matter where the second backward pass runs.
    """
    case = cases.BY_NAME[name]
    results = []
    for inside in (False, True):
        inputs = case.draw(7, 8, torch.float32, device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            first = torch.autograd.grad(
                case.loss(inputs, backend).sum(), inputs.values(), create_graph=True
            )
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=inside):
            results.append(
                torch.autograd.grad(first, inputs.values(), [torch.ones_like(x) for x in first])
            )
    assert all(
        torch.equal(x, y) and x.dtype == torch.float32 for x, y in zip(*results, strict=True)
    )
    exact = case.draw(7, 8, torch.float64, device)
    first = torch.autograd.grad(
        case.loss(exact, "reference").sum(), exact.values(), create_graph=True
    )
    truth = torch.autograd.grad(first, exact.values(), [torch.ones_like(x) for x in first])
    assert max(cases.relative_error(x, y) for x, y in zip(results[0], truth, strict=True)) < 0.05


MEMORY = """
    import sys, torch
    import fused_contrastive as fc

    def resident(kind):
        with open("/proc/self/status") as status:
            return 1024 * int(next(line for line in status if line.startswith(kind)).split()[1])

    def growth(n):
        z1, z2 = (torch.randn(n, 16, requires_grad=True) for _ in range(2))
        with open("/proc/self/clear_refs", "w") as reset_peak:
            reset_peak.write("5")
        before = resident("VmRSS")
        first = torch.autograd.grad(fc.nt_xent_loss(z1, z2), (z1, z2), create_graph=True)
        torch.autograd.grad(first, (z1, z2), first)
        return resident("VmHWM") - before

    growth(256)
    print(growth(int(sys.argv[1])))
"""


def test_memory():
    """Second derivatives of 8192 rows take at most 64 MB.

    The similarities alone would take 268 MB in float32.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("peak memory is read from Linux's /proc")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), "4096"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64e6, f"{int(done.stdout) / 1e6:.0f} MB"
