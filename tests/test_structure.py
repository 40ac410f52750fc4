"""Imports run one way, files stay short, every public function says what its shapes are."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

import fused_contrastive as fc

ROOT = Path(fc.__file__).resolve().parent
REPOSITORY = Path(__file__).resolve().parent.parent
LEVELS = (
    {"problem", "dtypes", "_torch_internals"},
    {"checks", "scalars", "reference", "backends"},
    {"triton_kernels", "ops", "collectives", "heatmap"},
    {"autograd", "memory_bank"},
    {"losses", "grad_cache"},
    {"modules"},
    {"integrations", "__init__"},
)
"""What each entry of the package may import: entries of the levels above its own line, and itself."""

LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def sources() -> dict[str, list[Path]]:
    """Files by the module of the package they belong to."""
    found = {path.stem: [path] for path in ROOT.glob("*.py")}
    for package in (*ROOT.glob("*/__init__.py"), REPOSITORY / "triton_kernels/__init__.py"):
        found.setdefault(package.parent.name, []).extend(sorted(package.parent.glob("*.py")))
    return found


def imported_modules(path: Path, nested: bool) -> set[str]:
    """Modules of the package that a file imports anywhere, also inside functions; `nested`: the file lies one folder deeper."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            up = node.level - (1 if nested else 0)
            if up == 1:
                names = [node.module] if node.module else [alias.name for alias in node.names]
            elif node.level == 0 and (node.module or "").startswith("fused_contrastive"):
                inside = node.module.partition(".")[2]
                names = [inside] if inside else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [
                a.name.partition(".")[2]
                for a in node.names
                if a.name.partition(".")[0] == "fused_contrastive"
            ]
        found |= {name.partition(".")[0] for name in names if name}
    return found


def test_imports_run_one_way():
    """losses -> autograd -> ops -> backends -> problem: every entry imports only from the levels before it."""
    files = sources()
    assert {"losses", "autograd", "ops", "backends", "triton_kernels", "reference"} <= set(files)
    for module, paths in files.items():
        assert module in LEVEL, f"give {module} a level in {Path(__file__).name}"
        for path in paths:
            for other in imported_modules(path, nested=path.parent != ROOT):
                assert other in LEVEL, f"{path.name} imports {other}, which has no level"
                assert LEVEL[other] < LEVEL[module] or other == module, (
                    f"{path.name} ({module}) must not import {other}"
                )


def test_backends_have_identical_signatures():
    """A backend is a module with `refusal`, `status` and one function per op.

    A function takes the op's arguments less the backend where the module lists it in FLAT, else the named tuples.
    """
    from fused_contrastive.backends import dispatch, panels
    from fused_contrastive.ops import _codec

    ops = ("similarity_forward", "similarity_backward")
    ops += ("sigmoid_forward", "sigmoid_backward")
    ops += ("force_forward", "distance_sums", "distance_gradient")
    for name in ops:
        if name not in _codec.TYPED:
            schema = getattr(torch.ops.fused_contrastive, name).default._schema
            arguments = [a.name for a in schema.arguments][:-1]
            assert list(inspect.signature(getattr(panels, name)).parameters) == arguments, name
    for backend in ("panels", "cpu", "triton", "cuda"):
        module = dispatch.module(backend)
        assert callable(module.refusal) and callable(module.status), backend
        if module.status().startswith("available"):
            assert all(callable(getattr(module, name, None)) for name in ops), backend
            for name in set(ops) & set(_codec.TYPED) - set(getattr(module, "FLAT", ())):
                theirs, ours = (inspect.signature(getattr(m, name)) for m in (module, panels))
                assert list(theirs.parameters) == list(ours.parameters), (backend, name)


@pytest.mark.parametrize("name", [n for n in fc.__all__ if n not in ("backends", "use_backend")])
def test_docstrings_state_shapes(name):
    """Functions state their shapes in brackets; modules name the function they wrap."""
    document = inspect.getdoc(getattr(fc, name)) or ""
    if inspect.isclass(getattr(fc, name)):
        assert name == "MemoryBank" or "Module form of `" in document
    else:
        assert "``[" in document or "[..., " in document or "[M, D]``" in document, document


def test_public_names():
    assert sorted(fc.__all__) == sorted(set(fc.__all__))
    for name in fc.__all__:
        assert hasattr(fc, name)
    assert inspect.getdoc(fc.backends) and inspect.getdoc(fc.use_backend)
    public = {n for n, x in vars(fc).items() if not n.startswith("_") and not inspect.ismodule(x)}
    assert public == set(fc.__all__)


def test_reference_has_the_signatures_of_the_losses():
    """The specification takes the same arguments with the same defaults, less backend."""
    from fused_contrastive import reference
    from fused_contrastive.losses import drift, force
    from fused_contrastive.reference import drift as drift_reference
    from fused_contrastive.reference import force as force_reference

    of_force = {*vars(force), *vars(drift)}
    names = [n for n in fc.__all__ if n.endswith("_loss") and n not in of_force]
    families = [(n, vars(fc)[n], reference) for n in names]
    families += [
        (n, getattr(force, n), force_reference)
        for n in ("contrastive_force", "contrastive_force_loss")
    ]
    families += [(n, getattr(drift, n), drift_reference) for n in ("drift_field", "drift_loss")]
    for name, function, specification in families:
        ours, theirs = (
            dict(inspect.signature(f).parameters) for f in (function, getattr(specification, name))
        )
        ours.pop("backend")
        assert list(ours) == list(theirs), name
        for key, parameter in ours.items():
            assert (
                parameter.default == theirs[key].default and parameter.kind == theirs[key].kind
            ), (name, key)


@pytest.mark.parametrize(
    "folder", ("fused_contrastive", "triton_kernels", "csrc", "tests", "bench", "examples")
)
def test_files_are_short(folder):
    """Under 400 lines each, none wider than 200 characters."""
    for path in sorted((REPOSITORY / folder).rglob("*")):
        if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh") and "__pycache__" not in path.parts:
            lines = path.read_text(encoding="utf-8").splitlines()
            assert len(lines) < 400, f"{path.relative_to(REPOSITORY)} has {len(lines)} lines"
            assert max(map(len, lines), default=0) <= 200, path.relative_to(REPOSITORY)
