"""These tests check which backend serves a call, and what is said when one does not."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import BACKENDS

import fused_contrastive as fc
from fused_contrastive.backends import dispatch


def in_a_fresh_process(code: str, **environment) -> str:
    """Return what `code` prints in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_backend_is_reported_with_a_reason():
    report = fc.backends()
    assert list(report) == ["eager", *BACKENDS]
    for name, status in report.items():
        assert status.startswith(("available", "unavailable: ")), (name, status)
        assert len(status) > len("unavailable: ") or status.startswith("available")
    assert report["eager"].startswith("available") and report["panels"].startswith("available")


def test_cpu_backend_where_there_is_a_compiler():
    """A machine that can build the native kernels has them.

    FUSED_CONTRASTIVE_BUILD=none is the exception.
    """
    compiler = next(
        filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))),
        None,
    )
    if compiler is None:
        pytest.skip("no C++ compiler here")
    if os.environ.get("FUSED_CONTRASTIVE_BUILD") == "none":
        pytest.skip("FUSED_CONTRASTIVE_BUILD=none")
    assert fc.backends()["cpu"].startswith("available"), (
        f"{compiler} is here, but: {fc.backends()['cpu']}"
    )


def test_triton_backend_where_there_is_triton():
    """The kernels of Triton run wherever Triton is installed.

    They run on the GPU, or else in the interpreter that conftest.py chose.
    """
    try:
        import triton  # noqa: F401
    except ImportError:
        pytest.skip("Triton is not installed")
    assert fc.backends()["triton"].startswith("available"), fc.backends()["triton"]
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert dispatch.refusal("triton", where, torch.float32) is None


def test_triton_serves_cpu_tensors_only_in_the_interpreter():
    code = """
        import torch, fused_contrastive as fc
        from fused_contrastive.backends import dispatch
        print(dispatch.refusal("triton", torch.device("cpu"), torch.float32))
        print(dispatch.select(None, torch.device("cpu"), torch.float32))
    """
    reason, chosen = in_a_fresh_process(code, TRITON_INTERPRET="0").splitlines()
    assert reason != "None" and chosen in ("cpu", "panels")


def test_default_choice():
    """The default is the native kernels on the CPU and Triton on the GPU.

    Panels serve other devices. They also serve wherever the first choice cannot.
    """
    native = dispatch.refusal("cpu", torch.device("cpu"), torch.float32) is None
    assert dispatch.select(None, torch.device("cpu"), torch.float32) == (
        "cpu" if native else "panels"
    )
    assert dispatch.select(None, torch.device("meta"), torch.float32) == "panels"
    if torch.cuda.is_available():
        assert dispatch.select(None, torch.device("cuda"), torch.bfloat16) == "triton"


@pytest.mark.no_poison
def test_the_choice_compiles_for_a_dynamic_dimension():
    """The choice of the backend is a constant of the compiled graph.

    It breaks no graph, and a new D causes no recompilation.
    """
    seen = []
    compiled = torch.compile(
        lambda x: fc.nt_xent_loss(x, x + 1, backend=None), fullgraph=True, backend="aot_eager"
    )
    original = dispatch.refusal

    def note(*arguments):
        seen.append(arguments[0])
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "refusal", note)
        for D in (6, 7, 8):
            x = torch.randn(8, D)
            torch._dynamo.mark_dynamic(x, 1)
            torch.testing.assert_close(compiled(x), fc.nt_xent_loss(x, x + 1, backend="eager"))
    assert seen == ["cpu"]


def test_use_backend(monkeypatch, device):
    """Inside the block, the backend serves every call that names none.

    Blocks nest. A block ends with an exception, too.
    """
    served = []
    choose = dispatch.select
    monkeypatch.setattr(dispatch, "select", lambda *a: served.append(choose(*a)) or served[-1])
    z = torch.randn(4, 3, device=device)
    default = choose(None, device, torch.float32)
    with fc.use_backend("panels"):
        fc.nt_xent_loss(z, z.clone())
        with fc.use_backend(None):
            fc.nt_xent_loss(z, z.clone())
        fc.nt_xent_loss(z, z.clone(), backend=default)
    with pytest.raises(KeyError), fc.use_backend("panels"):
        raise KeyError
    fc.nt_xent_loss(z, z.clone())
    assert served == ["panels", default, default, default]


def test_use_eager(monkeypatch, device):
    """The dense reference serves every public function inside `use_backend("eager")`."""
    monkeypatch.setattr(
        dispatch, "select", lambda *a: pytest.fail("eager must not reach a streaming backend")
    )
    z = torch.randn(4, 3, device=device)
    with fc.use_backend("eager"):
        for loss in (
            fc.nt_xent_loss(z, z.clone()),
            fc.info_nce_loss(z, z.clone(), torch.randn(5, 3, device=device)),
            fc.clip_loss(z, z.clone(), 2.0),
            fc.siglip_loss(z, z.clone(), 2.0, -1.0),
            fc.n_pairs_loss(z, z.clone()),
            fc.cpc_loss(z[None], z[None].clone())[0],
            fc.similarity_logsumexp(z),
        ):
            assert loss.isfinite().all()


def test_import_takes_nothing_with_it():
    """Importing the package loads torch, but not triton, matplotlib or scikit-learn."""
    code = """
        import sys, torch
        before = set(sys.modules)
        import fused_contrastive
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(sorted(new & {"triton", "matplotlib", "sklearn"}))
    """
    assert in_a_fresh_process(code) == "[]"


def test_without_triton():
    """An installation without Triton works, and backends() says what is missing."""
    code = """
        import sys
        sys.modules["triton"] = None
        import torch, fused_contrastive as fc
        z = torch.randn(8, 4, requires_grad=True)
        fc.nt_xent_loss(z, torch.randn(8, 4)).backward()
        assert z.grad.isfinite().all()
        status = fc.backends()["triton"]
        assert status.startswith("unavailable: ") and "riton" in status, status
        try:
            fc.nt_xent_loss(z, z.detach(), backend="triton")
        except RuntimeError as error:
            print(error)
    """
    assert "backend='triton' cannot serve" in in_a_fresh_process(code)


def test_without_the_extension():
    """An installation without the compiled library works on the panels backend.

    Then backends() gives the reason.
    """
    code = """
        import sys
        sys.modules["fused_contrastive._C_cpu"] = None
        import torch, fused_contrastive as fc
        z = torch.randn(8, 4, requires_grad=True)
        fc.nt_xent_loss(z, torch.randn(8, 4)).backward()
        assert z.grad.isfinite().all()
        status = fc.backends()["cpu"]
        assert status.startswith("unavailable: "), status
        from fused_contrastive.backends import dispatch
        print(dispatch.select(None, z.device, z.dtype))
    """
    assert in_a_fresh_process(code) == "panels"
