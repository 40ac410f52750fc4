"""Large inputs take many panels and little memory, and give the same bits in every run."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from conftest import is_interpreted, skip_unless_served
from support import cases, uses
from support.yardstick import assert_within_yardstick

import fused_contrastive as fc
from fused_contrastive.backends.panels import _panel as panels

NAMES = [case.name for case in cases.LOSSES]


def run(case, backend, n, d, dtype, device, seed=0):
    """Return the loss and gradients, with random upstream gradients."""
    inputs = case.draw(n, d, dtype, device, seed)
    loss = case.loss(inputs, backend)
    loss.backward(torch.randn(loss.shape, generator=torch.Generator().manual_seed(seed)).to(loss))
    return [loss.detach(), *(x.grad for x in inputs.values())]


@pytest.mark.parametrize("panel", (1, 7, 64, 1000))
@pytest.mark.parametrize("name", NAMES)
def test_panels_of_any_size(name, panel, device, monkeypatch):
    """Panels of any size give the same numbers.

    There may be one row or several groups in a panel, and panels may be ragged.
    """
    case = cases.BY_NAME[name]
    expected = run(case, "panels", 23, 5, torch.float64, device)
    monkeypatch.setattr(panels, "PANEL", panel)
    for x, y in zip(run(case, "panels", 23, 5, torch.float64, device), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("use", uses.USES, ids=str)
def test_panels_of_any_size_in_the_primitive(use, device, monkeypatch):
    results = []
    for panel in (1 << 22, 64, 7):
        monkeypatch.setattr(panels, "PANEL", panel)
        named = use.draw(19, 13, 3, device=device)
        out = use.apply(named, "panels")
        torch.autograd.backward(
            out,
            [
                torch.linspace(0.5, 2, o.numel(), dtype=o.dtype, device=device).view_as(o)
                for o in out
            ],
        )
        results.append(
            [*(o.detach() for o in out), *(x.grad for x in named.values() if x.requires_grad)]
        )
    for other in results[1:]:
        for x, y in zip(other, results[0], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ("nt_xent", "clip", "info_nce-queue"))
def test_several_natural_panels(name, backend, device):
    """Errors are at most eager's for N = 3000.

    The panels backend needs several of its own panels there. The kernels need dozens of tiles in
    both directions.
    """
    if is_interpreted(backend):
        pytest.skip("minutes in the interpreter; its tiles are crossed in test_gradcheck.py")
    case = cases.BY_NAME[name]
    n = 3000 if name != "nt_xent" else 1500
    ours, eager = (
        [cases.loss_errors(name, label, n, 16, torch.float32, device, seed) for seed in range(3)]
        for label in (backend, "reference")
    )
    assert case and 3000 * 3000 > 2 * panels.PANEL
    assert_within_yardstick(ours, eager, torch.float32)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_same_bits_across_runs(name, dtype, backend, device):
    """Three runs give the same bits, also under use_deterministic_algorithms."""
    n, d = (19, 20) if is_interpreted(backend) else (300, 33)
    case = cases.BY_NAME[name]
    first = run(case, backend, n, d, dtype, device)
    torch.use_deterministic_algorithms(device.type == "cpu")
    try:
        for _ in range(2):
            for x, y in zip(run(case, backend, n, d, dtype, device), first, strict=True):
                assert torch.equal(x, y)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend_name", ("cpu", "panels"))
@pytest.mark.parametrize(
    "dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str
)
@pytest.mark.parametrize(
    "name",
    (
        "nt_xent",
        "info_nce-symmetric",
        "info_nce-queue",
        "info_nce-paired",
        "n_pairs-target",
        "cpc",
        "sup_con",
    ),
)
def test_any_thread_count(name, dtype, backend_name, threads):
    """The native kernels give the same bits with 1, 2, 3 and 8 threads on the CPU.

    The panels backend rounds as the library's products do.
    """
    cpu = torch.device("cpu")
    skip_unless_served(backend_name, cpu, dtype)
    case = cases.BY_NAME[name]
    results = []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        results.append(run(case, backend_name, 300, 33, dtype, cpu))
    for other in results[1:]:
        for index, (x, y) in enumerate(zip(other, results[0], strict=True)):
            if backend_name == "cpu":
                assert torch.equal(x, y), (
                    f"output {index} differs by {(x - y).abs().max().item():.1e}"
                )
            else:
                torch.testing.assert_close(x, y, rtol=16 * torch.finfo(x.dtype).eps, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_uninitialised_memory_is_never_read(name, backend, device):
    """Nothing changes where torch itself fills every new CPU tensor with NaN.

    It fills C++ allocations too.
    """
    if device.type != "cpu":
        pytest.skip(
            "torch fills new memory in deterministic mode, which not every CUDA operation has"
        )
    case = cases.BY_NAME[name]
    expected = run(case, backend, 9, 5, torch.float32, device)
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        found = run(case, backend, 9, 5, torch.float32, device)
    finally:
        torch.use_deterministic_algorithms(False)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


MEMORY = """
    import sys, torch
    import fused_contrastive as fc

    name, backend, n = sys.argv[1], sys.argv[2], int(sys.argv[3])

    def resident(kind):
        with open("/proc/self/status") as status:
            return 1024 * int(next(line for line in status if line.startswith(kind)).split()[1])

    def growth(n):
        z1, z2 = (torch.randn(n, 16, requires_grad=True) for _ in range(2))
        for z in (z1, z2):
            z.grad = torch.zeros_like(z)
        with open("/proc/self/clear_refs", "w") as reset_peak:
            reset_peak.write("5")
        before = resident("VmRSS")
        options = {"logit_scale": 0.1} if name in ("clip_loss", "siglip_loss") else {}
        options |= {"logit_bias": -1.0} if name == "siglip_loss" else {}
        second = torch.arange(n) % 1000 if name == "sup_con_loss" else z2
        getattr(fc, name)(z1, second, **options, backend=backend).backward()
        return resident("VmHWM") - before

    growth(256)
    print(growth(n))
"""


@pytest.mark.everyday(keep=lambda p: p["name"] in ("nt_xent_loss", "siglip_loss"))
@pytest.mark.parametrize("backend_name", ("panels", "cpu"))
@pytest.mark.parametrize("n", (8192,))
@pytest.mark.parametrize("name", ("nt_xent_loss", "clip_loss", "siglip_loss", "sup_con_loss"))
def test_memory(name, n, backend_name):
    """Forward and backward take less than 64 MB.

    In float32 the similarities would take 1.07 GB for NT-Xent and 268 MB for the other losses.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("peak memory is read from Linux's /proc")
    skip_unless_served(backend_name, torch.device("cpu"))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), name, backend_name, str(n)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout)
    assert growth < 64e6, f"{growth / 1e6:.0f} MB"


def test_memory_of_the_gpu(device):
    """Forward and backward at N = 32768 and D = 64 take less than 1 GB of device memory.

    The matrix would take 17 GB.
    """
    if device.type != "cuda":
        pytest.skip("no GPU in this run")
    z1, z2 = (
        torch.randn(32768, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2)
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fc.nt_xent_loss(z1, z2).backward()
    assert torch.cuda.max_memory_allocated() - before < 1e9


@pytest.mark.parametrize("scale", (5e9, 1e12, 1e20))
def test_huge_logits(scale, backend, device):
    """A row's gradient is that of its largest logit where the others are far below.

    Neighbouring numbers are then further apart than the range of an exponential. Two float32
    numbers hold a log-sum-exp of 1e12 to 0.004.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def gradients(loss, dtype, **where):
        u, v = (F.normalize(x.to(device, dtype), dim=1).requires_grad_() for x in (a, b))
        return torch.autograd.grad(loss(u, v, **where), (u, v))

    for loss in (
        lambda u, v, **where: fc.clip_loss(u, v, scale, **where),
        lambda u, v, **where: fc.similarity_logsumexp(u, v, scale=scale, **where).sum(),
        lambda u, v, **where: sum(
            x.sum()
            for x in fc.similarity_logsumexp(u, v, scale=scale, return_columns=True, **where)
        ),
        lambda u, v, **where: fc.similarity_logsumexp(
            torch.cat([u, v]), scale=scale, candidates="not_self", **where
        ).sum(),
    ):
        found = gradients(loss, torch.float32, backend=backend)
        expected = gradients(loss, torch.float64, backend="eager")
        for x, y in zip(found, expected, strict=True):
            error, y = x.double() / scale - y / scale, y / scale
            assert error.norm() <= 0.01 * y.norm()
