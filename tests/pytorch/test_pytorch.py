"""The ops and losses behave as PyTorch expects of its own.

The tests cover opcheck, torch.compile, gradients with and without a graph, and meta tensors.
torch.func is in test_func.py, export in test_export.py, and second derivatives are in
test_second_derivatives.py.
"""

import pytest
import torch
from conftest import is_interpreted
from support import cases, uses
from torch._dynamo.testing import CompileCounterWithBackend

import fused_contrastive as fc
from fused_contrastive.problem import NO_SELF

NAMES = [case.name for case in cases.LOSSES]
# What is traced is the same for every backend, so that a few losses are enough.
FEW = ("nt_xent", "info_nce-queue", "sup_con")
pytestmark = pytest.mark.no_poison


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def traced_backend(backend) -> str:
    """Returns a backend whose kernels the compiler may meet.

    The interpreter runs Python that Dynamo and opcheck cannot trace.
    """
    if backend == "triton" and is_interpreted(backend):
        pytest.skip("Dynamo and opcheck cannot trace an interpreted Triton kernel")
    return backend


# Each call says: b, bias, keys, kind, offset, stride, positive, normalize, columns, extrema and
# weighted.
OP_CALLS = {
    "one-set-positive": (False, False, False, "not_pair", 0, 3, 3, True, False, True, False),
    "one-set": (False, False, False, "not_self", 0, 1, -1, False, False, False, False),
    "two-sets-positive": (True, False, False, "not_self", 0, 1, 0, True, True, True, False),
    "two-sets-bias": (True, True, False, "all", NO_SELF, 1, -1, False, True, False, False),
    "two-sets-keys": (True, False, True, "same_key", 1, 1, -1, True, False, False, False),
    "weighted": (True, False, False, "all", NO_SELF, 1, -1, True, False, False, True),
}


def op_arguments(call, backend, device, dtype):
    (
        two,
        with_bias,
        with_keys,
        kind,
        offset,
        stride,
        positive,
        normalize,
        columns,
        extrema,
        weighted,
    ) = OP_CALLS[call]
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    G, M, N, D = 2, 6, 6, 4
    a = torch.randn(G, M, D, device=device).to(dtype)
    b = torch.randn(G, N, D, device=device).to(dtype) if two else None
    scale = torch.tensor(1.5, device=device, dtype=accumulate)
    bias = torch.randn(G, N, device=device, dtype=accumulate) if with_bias else None
    key_a = torch.randint(0, 2, (G, M), device=device) if with_keys else None
    key_b = torch.randint(0, 2, (G, N), device=device) if with_keys else None
    candidates = (kind, offset, stride, positive, normalize)
    forward = (
        a,
        b,
        scale,
        bias,
        key_a,
        key_b,
        *candidates,
        columns,
        extrema,
        weighted,
        dtype,
        backend,
    )
    out = torch.ops.fused_contrastive.similarity_forward(*forward)
    rows, cols, pos, _, _, _, *prepared = out
    g_rows = torch.randn_like(rows[0])
    g_cols = torch.randn_like(cols[0]) if columns and positive < 0 else cols.new_empty(0)
    needs = (True, two, True, with_bias)
    backward = (
        g_rows,
        g_cols,
        *forward[:6],
        rows,
        cols,
        pos,
        *prepared,
        *candidates,
        dtype,
        *needs,
        backend,
    )
    tangents = [None if x is None else torch.randn_like(x) for x in (a, b, scale, bias)]
    return {
        "similarity_forward": forward,
        "similarity_backward": backward,
        "similarity_second": (*tangents, *backward),
    }


@pytest.mark.everyday(
    keep=lambda p: p["dtype"] == torch.float32 or p["call"] in ("weighted", "one-set-positive")
)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("call", OP_CALLS)
def test_opcheck(call, dtype, traced_backend, device):
    """The ops pass opcheck.

    It checks their schemas, fakes (shapes, dtypes, strides), aliasing and autograd formulas. The op
    of the second derivatives is the same for all backends, so it is checked once.
    """
    for op, arguments in op_arguments(call, traced_backend, device, dtype).items():
        if op == "similarity_second" and traced_backend != "panels":
            continue
        torch.library.opcheck(
            getattr(torch.ops.fused_contrastive, op).default, differentiable(op, arguments)
        )


def differentiable(op, arguments):
    """Returns the arguments with operands and upstream gradients as leaves.

    The op of the second derivatives has no leaves, because its derivatives would be third ones.
    """
    last = {"similarity_forward": 4, "similarity_backward": 6, "similarity_second": 0}[op]
    leaves = (
        x if x is None or x.numel() == 0 else x.detach().requires_grad_() for x in arguments[:last]
    )
    return (*leaves, *arguments[last:])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("call", OP_CALLS)
def test_fakes_of_interpreted_kernels(call, dtype, backend, device):
    """Every output has the shape, dtype and strides of the fake.

    This is also checked where opcheck cannot be used.
    """
    for op, arguments in op_arguments(call, backend, device, dtype).items():
        function = getattr(torch.ops.fused_contrastive, op)
        real = function(*arguments)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
            fake = function(*arguments)
        for x, y in zip(real, fake, strict=True):
            assert (x.shape, x.dtype, x.device, x.stride()) == (
                y.shape,
                y.dtype,
                y.device,
                y.stride(),
            )


def compiled_loss(case, backend, options, mode):
    """Compiles the loss of positional tensors as one full graph."""

    def loss(*values):
        return case.loss(dict(zip(options, values, strict=True)), backend, reduction="mean")

    return torch.compile(loss, fullgraph=True, backend=mode)


def assert_compiled(case, backend, device, mode, n=9, d=5):
    inputs = case.draw(n, d, torch.float32, device)
    again = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    expected = case.loss(inputs, backend, reduction="mean")
    expected.backward()
    loss = compiled_loss(case, backend, list(again), mode)(*again.values())
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, x in inputs.items():
        torch.testing.assert_close(again[name].grad, x.grad, msg=name)


@pytest.mark.everyday(keep=lambda p: p["backend"] == "cpu" or p["name"] in FEW)
@pytest.mark.parametrize("name", NAMES)
def test_compile(name, traced_backend, device):
    """Every loss compiles as one graph, forward and backward."""
    assert_compiled(cases.BY_NAME[name], traced_backend, device, "aot_eager")


@pytest.mark.everyday(keep=lambda p: p["name"] == "nt_xent")
@pytest.mark.parametrize("name", ("nt_xent", "clip"))
def test_compile_with_inductor(name, device):
    """The default compiler takes the losses with the device's default backend."""
    if is_interpreted("triton") and device.type == "cuda":
        pytest.skip("inductor's own kernels cannot run in the interpreter")
    assert_compiled(cases.BY_NAME[name], None, device, "inductor")


@pytest.mark.parametrize("use", [u for u in uses.USES if u.columns or u.lead], ids=str)
def test_compile_primitive(use, device):
    named = use.draw(7, 7, 3, torch.float32, device)
    names = [name for name, x in named.items() if x.requires_grad]
    leaves = [named[name].detach().clone().requires_grad_() for name in names]

    def rows_and_columns(*values):
        return use.apply(named | dict(zip(names, values, strict=True)), None)

    out = torch.compile(rows_and_columns, fullgraph=True, backend="aot_eager")(*leaves)
    expected = use.apply(named, None)
    for x, y in zip(out, expected, strict=True):
        torch.testing.assert_close(x, y)
    sum(o.exp().sum() for o in out).backward()
    sum(o.exp().sum() for o in expected).backward()
    for name, x in zip(names, leaves, strict=True):
        torch.testing.assert_close(x.grad, named[name].grad)


def batch_dimensions(case, n, d):
    """Returns by name which dimension of each argument grows with n."""
    draws = [case.draw(n, d), case.draw(n + 4, d)]
    return {
        name: next(
            (
                i
                for i, (m, k) in enumerate(zip(x.shape, draws[1][name].shape, strict=True))
                if m != k
            ),
            None,
        )
        for name, x in draws[0].items()
    }


@pytest.mark.everyday(keep=lambda p: p["name"] in (cases.ONE_OF_EACH if p["marked"] else FEW))
@pytest.mark.parametrize("marked", (False, True))
@pytest.mark.parametrize("name", NAMES)
def test_compile_dynamic_batch(name, marked, device):
    """One graph serves every batch size.

    It is compiled at the first size and, unless the dimension is marked as dynamic, again at the
    second.
    """
    case = cases.BY_NAME[name]
    counter = CompileCounterWithBackend("aot_eager")
    loss = compiled_loss(case, None, list(case.draw(6, 5)), counter)
    for n in (6, 11, 40, 17):
        inputs = case.draw(n, 5, torch.float32, device)
        for key, dimension in batch_dimensions(case, n, 5).items():
            if marked and dimension is not None:
                torch._dynamo.mark_dynamic(inputs[key], dimension)
        value = loss(*inputs.values())
        value.backward()
        expected = {k: x.detach().clone().requires_grad_() for k, x in inputs.items()}
        reference = case.loss(expected, None, reduction="mean")
        reference.backward()
        torch.testing.assert_close(value, reference, msg=f"n={n}")
        for k, x in inputs.items():
            torch.testing.assert_close(x.grad, expected[k].grad, msg=f"n={n}: {k}")
    assert counter.frame_count == (1 if marked else 2)


def test_compile_metrics_and_module(traced_backend, device):
    z1, z2 = torch.randn(8, 4, device=device), torch.randn(8, 4, device=device)
    module = fc.NTXentLoss(0.2, metrics=True, learnable=True, backend=traced_backend).to(device)
    loss, metrics = torch.compile(module, fullgraph=True, backend="aot_eager")(z1, z2)
    loss.backward()
    gradient, module.log_temperature.grad = module.log_temperature.grad, None
    expected, wanted = module(z1, z2)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, wanted)
    torch.testing.assert_close(gradient, module.log_temperature.grad)


def test_second_derivatives_under_compile(traced_backend, device):
    """Training on a gradient penalty of a compiled loss raises.

    AOTAutograd does this for all compiled code. Inside compiled code torch.func.grad takes the
    penalty (test_func.py).
    """
    if torch.__version__ < "2.12":
        pytest.skip(
            "torch 2.11 drops the graph of a compiled function's gradients, whatever the function"
        )
    case = cases.BY_NAME["nt_xent"]
    inputs = case.draw(5, 3, torch.float64, device)
    loss = compiled_loss(case, traced_backend, list(inputs), "aot_eager")(*inputs.values())
    first = torch.autograd.grad(loss, list(inputs.values()), create_graph=True)
    with pytest.raises(
        (RuntimeError, NotImplementedError), match=r"double backward|second derivatives"
    ):
        (loss + sum(g.square().sum() for g in first)).backward()


def test_gradients_with_create_graph_are_right(backend, device):
    """create_graph alone changes no first derivative."""
    case = cases.BY_NAME["info_nce-symmetric"]
    inputs = case.draw(6, 3, torch.float64, device)
    plain, graph = (
        torch.autograd.grad(
            case.loss(inputs, backend, reduction="mean"), inputs.values(), create_graph=create
        )
        for create in (False, True)
    )
    for x, y in zip(plain, graph, strict=True):
        torch.testing.assert_close(x, y)


def test_backward_twice(backend, device):
    """retain_graph works and gradients accumulate. Without it autograd raises its own error."""
    case = cases.BY_NAME["nt_xent"]
    inputs = case.draw(6, 3, torch.float64, device)
    loss = case.loss(inputs, backend, reduction="mean")
    loss.backward(retain_graph=True)
    once = inputs["z1"].grad.clone()
    loss.backward()
    torch.testing.assert_close(inputs["z1"].grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_no_grad_and_inference_mode(name, backend, device):
    case = cases.BY_NAME[name]
    inputs = case.draw(6, 4, torch.float32, device)
    expected = case.loss(inputs, backend).detach()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            loss = case.loss(inputs, backend)
        assert not loss.requires_grad
        torch.testing.assert_close(loss.clone(), expected)


def test_inputs_are_left_alone(backend, device):
    for case in cases.LOSSES:
        inputs = case.draw(6, 4, torch.float32, device)
        before = {name: x.detach().clone() for name, x in inputs.items()}
        loss = case.loss(inputs, backend)
        upstream = torch.randn_like(loss)
        kept = upstream.clone()
        loss.backward(upstream)
        assert torch.equal(upstream, kept)
        for name, x in inputs.items():
            assert torch.equal(x, before[name]), (case.name, name)


def test_the_same_tensor_twice(backend, device):
    """The gradients of both views add up in nt_xent_loss(z, z)."""
    z = torch.randn(7, 4, dtype=torch.float64, device=device, requires_grad=True)
    fc.nt_xent_loss(z, z, backend=backend).backward()
    z1, z2 = (z.detach().clone().requires_grad_() for _ in range(2))
    fc.nt_xent_loss(z1, z2, backend=backend).backward()
    torch.testing.assert_close(z.grad, z1.grad + z2.grad)


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors(name):
    """Meta tensors give the shapes that eager gives, without data."""
    if cases.BY_NAME[name].target is not None:
        pytest.skip("the values of target are checked, and meta tensors have none")
    case = cases.BY_NAME[name]
    inputs = case.draw(6, 4, torch.float32, "meta")
    loss = case.loss(inputs, None)
    assert loss.device.type == "meta" and loss.shape == case.loss(inputs, "reference").shape
    loss.sum().backward()
    assert all(x.grad.shape == x.shape for x in inputs.values())


def test_compile_with_a_temperature_that_changes(device):
    """A compiled loss follows a schedule of temperatures.

    Dynamo turns the number into a symbol at its second value.
    """
    compiled = torch.compile(
        lambda a, b, t: fc.nt_xent_loss(a, b, t), fullgraph=True, backend="aot_eager"
    )
    a, b = (torch.randn(6, 4, device=device) for _ in range(2))
    for temperature in (0.5, 0.4, 0.3):
        torch.testing.assert_close(compiled(a, b, temperature), fc.nt_xent_loss(a, b, temperature))
