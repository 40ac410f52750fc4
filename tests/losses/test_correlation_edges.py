"""The correlation losses are right at their edges.

The edges are odd inputs, PyTorch's own tools, modules, errors and memory.
"""

import copy
import inspect
import math
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from support.correlation_cases import NAMES, error, truth, views

import fused_contrastive as fc
from fused_contrastive import reference

MODULES = {"CorrelationLoss": "correlation_loss", "BarlowTwinsLoss": "barlow_twins_loss"}


@pytest.mark.parametrize("name", NAMES)
def test_strides(name, device):
    """Transposed and sliced views give the same gradients, and one tensor may be both views."""
    z1, z2 = views(8, 12, device=device)
    expected = torch.autograd.grad(getattr(fc, name)(z1, z2), (z1, z2))
    wide = torch.randn(8, 24, dtype=torch.float64, device=device)
    with torch.no_grad():
        wide[:, ::2] = z1
    odd = [wide[:, ::2].requires_grad_(), z2.detach().T.contiguous().T.requires_grad_()]
    for x, y in zip(torch.autograd.grad(getattr(fc, name)(*odd), odd), expected, strict=True):
        torch.testing.assert_close(x, y)
    both = torch.autograd.grad(getattr(fc, name)(z1, z1), z1)[0]
    apart = torch.autograd.grad(
        getattr(fc, name)(z1, z2.detach().copy_(z1.detach()).requires_grad_()), z1
    )[0]
    # Two equal views have the same gradient.
    torch.testing.assert_close(both, 2 * apart)


@pytest.mark.parametrize("backend", (None, "eager"))
def test_empty_and_single(backend, device):
    def loss(name, *shape):
        z1, z2 = (torch.randn(*shape, device=device, requires_grad=True) for _ in range(2))
        value = getattr(fc, name)(z1, z2, backend=backend)
        value.backward()
        assert value.shape == () and z1.grad.shape == shape
        return value

    assert loss("correlation_loss", 0, 4) == 0 and loss("barlow_twins_loss", 4, 0) == 0
    assert loss("barlow_twins_loss", 0, 4).isnan()
    # Rows without features correlate with nothing.
    assert loss("correlation_loss", 3, 0) == torch.tensor(0.025 * 3)
    assert loss("correlation_loss", 1, 4).isfinite() and loss("barlow_twins_loss", 4, 1).isfinite()
    for name, shape in (("correlation_loss", (4, 1)), ("barlow_twins_loss", (1, 4))):
        with pytest.raises(ValueError, match=r"z1 must have more than one .* to have a variance"):
            loss(name, *shape)


@pytest.mark.parametrize("name", NAMES)
def test_constant_duplicate_and_zero(name, device):
    """Rows and features without variance correlate with nothing.

    They count 1 each, and their gradient is finite.
    """
    z1, z2 = views(10, 12, torch.float32, device)
    with torch.no_grad():
        z1[3], z2[3], z1[:, 5], z2[:, 5] = 7.3, 7.3, -0.1, -0.1
        z1[4], z2[4] = z1[6], z2[6]
        z1[8] = 0
    loss = getattr(fc, name)(z1, z2)
    loss.backward()
    true = truth(name, z1, z2, 5e-3, 0.025 if name == "correlation_loss" else 1.0)
    assert error(loss, true[0]) < 1e-6
    assert error(z1.grad, true[1]) < 1e-5 and error(z2.grad, true[2]) < 1e-5
    constant = torch.full((6, 30), 0.1, device=device)
    assert getattr(fc, name)(constant, constant.clone(), scale_loss=1.0) == (
        6 if name == "correlation_loss" else 30
    )


@pytest.mark.parametrize("shape", ((6, 4), (3, 9)), ids=str)
@pytest.mark.parametrize("value", (math.nan, math.inf))
@pytest.mark.parametrize("name", NAMES)
def test_not_finite(name, value, shape, device):
    """NaN or infinity in an input makes the loss NaN, as in eager.

    Some of the gradient is NaN too.
    """
    z1, z2 = views(*shape, torch.float32, device)
    with torch.no_grad():
        z2[1, 1] = value
    for backend in (None, "eager"):
        loss = getattr(fc, name)(z1, z2, backend=backend)
        assert loss.isnan() and torch.autograd.grad(loss, z1)[0].isnan().any()


@pytest.mark.parametrize("name", NAMES)
def test_only_one_gradient(name, device):
    for shape in ((7, 5), (3, 9), (9, 3)):
        z1, z2 = views(*shape, device=device)
        expected = torch.autograd.grad(getattr(fc, name)(z1, z2), (z1, z2))
        assert torch.equal(
            torch.autograd.grad(getattr(fc, name)(z1, z2.detach()), z1)[0], expected[0]
        )
        assert torch.equal(
            torch.autograd.grad(getattr(fc, name)(z1.detach(), z2), z2)[0], expected[1]
        )


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_derivatives(name, device):
    """create_graph changes no gradient, and differentiating such a gradient raises.

    Eager can be differentiated twice.
    """
    z1, z2 = views(6, 4, device=device)
    plain = torch.autograd.grad(getattr(fc, name)(z1, z2), (z1, z2))
    graph = torch.autograd.grad(getattr(fc, name)(z1, z2), (z1, z2), create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(plain, graph, strict=True))
    with pytest.raises(NotImplementedError, match="second derivatives"):
        graph[1].square().sum().backward()
    function = getattr(fc, name)
    assert torch.autograd.gradgradcheck(lambda a, b: function(a, b, backend="eager"), (z1, z2))
    with pytest.raises(NotImplementedError, match="vmap"):
        torch.func.vmap(lambda lamb: function(z1, z2, lamb))(
            torch.ones(2, dtype=z1.dtype, device=device)
        )
    loss = function(z1, z2)
    loss.backward(retain_graph=True)
    once = z1.grad.clone()
    loss.backward()
    assert torch.equal(z1.grad, 2 * once)


@pytest.mark.no_poison
@pytest.mark.parametrize("name", NAMES)
def test_compile(name, device):
    """The losses compile as one graph, also under autocast.

    With a dynamic batch no graph is recompiled on the same side of F = 2 K.
    """
    torch.compiler.reset()
    function = getattr(fc, name)

    def loss(z1, z2):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return function(z1, z2)

    def assert_same(compiled, function, z1, z2, **tolerance):
        found, expected = compiled(z1, z2), function(z1, z2)
        torch.testing.assert_close(found, expected, **tolerance)
        for x, y in zip(
            *(torch.autograd.grad(v, (z1, z2)) for v in (found, expected)), strict=True
        ):
            torch.testing.assert_close(x, y, **tolerance)

    # This shape has F >= 2 K.
    flat = (3, 20) if name == "barlow_twins_loss" else (20, 3)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(compiled, loss, *views(*flat, torch.float32, device), rtol=2e-2, atol=2e-3)
    dynamic = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, shape in enumerate(((9, 7), (12, 10), (8, 11))):
        with torch.compiler.set_stance("fail_on_recompile" if count else "default"):
            assert_same(dynamic, function, *views(*shape, torch.float32, device))
    torch.compiler.reset()


@pytest.mark.parametrize("name", NAMES)
def test_other_tools(name, device):
    """The losses work with torch.func.grad, no_grad, inference_mode and meta tensors.

    They give the same bits again, and leave their inputs alone.
    """
    z1, z2 = views(6, 14, device=device)
    function = getattr(fc, name)
    before = [z.detach().clone() for z in (z1, z2)]
    loss = function(z1, z2)
    expected = torch.autograd.grad(loss, (z1, z2))
    for x, y in zip(torch.func.grad(function, (0, 1))(*before), expected, strict=True):
        torch.testing.assert_close(x, y)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            value = function(z1, z2)
        assert not value.requires_grad and torch.equal(value.clone(), loss)
    again = torch.autograd.grad(function(z1, z2), (z1, z2))
    assert all(torch.equal(x, y) for x, y in zip(again, expected, strict=True))
    assert torch.equal(z1, before[0]) and torch.equal(z2, before[1])
    meta = [z.to("meta").requires_grad_() for z in before]
    value = function(*meta)
    value.backward()
    assert value.shape == () and value.device.type == "meta" and meta[0].grad.shape == z1.shape


@pytest.mark.parametrize("name", NAMES)
def test_weights_may_be_tensors(name, device):
    """lamb and scale_loss may be tensors of any float dtype, on the inputs' device or the CPU.

    Their values are not read, and they get gradients.
    """
    z1, z2 = views(6, 4, torch.float32, device)
    expected = getattr(fc, name)(z1, z2, 0.25, 0.5)
    for dtype in (torch.float64, torch.bfloat16):
        lamb, scale_loss = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in (0.25, 0.5))
        loss = getattr(fc, name)(z1, z2, lamb, scale_loss)
        assert torch.equal(loss, expected) and loss.dtype == torch.float32
        loss.backward()
        assert lamb.grad.dtype == dtype and lamb.grad > 0 and scale_loss.grad > 0


def test_modules(device):
    for name, function in MODULES.items():
        constructor, forward, options = (
            dict(inspect.signature(f).parameters)
            for f in (getattr(fc, name), getattr(fc, name).forward, getattr(fc, function))
        )
        assert (
            list(forward) == ["self", *list(options)[:2]] and list(constructor) == list(options)[2:]
        )
        for key, parameter in constructor.items():
            assert (parameter.default, parameter.kind) == (options[key].default, options[key].kind)
        z1, z2 = views(6, 4, torch.float32, device)
        module = getattr(fc, name)(0.1, 0.3)
        expected = getattr(fc, function)(z1, z2, 0.1, 0.3)
        for twin in (
            module,
            copy.deepcopy(module),
            pickle.loads(pickle.dumps(module)),
            module.eval(),
        ):
            assert torch.equal(twin(z1, z2), expected)
        assert not module.state_dict() and repr(module).startswith(
            f"{name}(lamb=0.1, scale_loss=0.3"
        )
        assert torch.equal(
            getattr(fc, name)(backend="eager")(z1, z2), getattr(reference, function)(z1, z2)
        )
        with pytest.raises(TypeError, match="lamb must be a number, got a tensor"):
            getattr(fc, name)(torch.tensor(0.1))


Z = torch.randn(4, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("arguments", "error_type", "message"),
    (
        ((Z.long(), Z), TypeError, "z1 must be a floating-point tensor"),
        ((Z, Z.tolist()), TypeError, "z2 must be a tensor"),
        ((Z[None], Z), ValueError, "z1 must have 2 dimensions"),
        ((Z, Z[:3]), ValueError, "z2 must have the shape of z1"),
        ((Z, Z.double()), TypeError, "z2 must have the dtype of z1"),
        ((Z, Z.to("meta")), ValueError, "z2 must be on the device of z1"),
        ((Z, Z, math.nan), ValueError, "lamb must be finite"),
        ((Z, Z, "1"), TypeError, "lamb must be a number"),
        ((Z, Z, 0.1, torch.ones(2)), ValueError, "scale_loss must be a 0-d"),
    ),
)
def test_errors(name, arguments, error_type, message):
    with pytest.raises(error_type, match=f"^{message}"):
        getattr(fc, name)(*arguments)


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_options(name):
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed\.ProcessGroup"):
        getattr(fc, name)(Z, Z, group="ranks")
    with pytest.raises(ValueError, match="backend must be one of"):
        getattr(fc, name)(Z, Z, backend="gpu")


MEMORY = """
    import sys, torch
    import fused_contrastive as fc

    def resident(kind):
        with open("/proc/self/status") as status:
            return 1024 * int(next(line for line in status if line.startswith(kind)).split()[1])

    def growth(n, d):
        z1, z2 = (torch.randn(n, d, requires_grad=True) for _ in range(2))
        for z in (z1, z2):
            z.grad = torch.zeros_like(z)
        with open("/proc/self/clear_refs", "w") as reset_peak:
            reset_peak.write("5")
        before = resident("VmRSS")
        getattr(fc, sys.argv[1])(z1, z2).backward()
        return resident("VmHWM") - before

    growth(64, 128)
    growth(128, 64)
    print(growth(int(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.parametrize(
    ("name", "n", "d"), (("barlow_twins_loss", 24, 12000), ("correlation_loss", 12000, 24))
)
def test_memory(name, n, d):
    """Forward and backward take less than 32 MB, where the correlation matrix takes 576 MB."""
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from Linux's /proc")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), name, str(n), str(d)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32e6, f"{int(done.stdout) / 1e6:.0f} MB"
