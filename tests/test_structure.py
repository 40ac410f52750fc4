"""The sources keep the rules of the house that a program can check.

The rules concern imports, names, sizes, calls and docstrings.
"""

import ast
import inspect
import io
import re
import tokenize
from pathlib import Path

import pytest
import torch

import fused_contrastive as fc

ROOT = Path(fc.__file__).resolve().parent
REPOSITORY = Path(__file__).resolve().parent.parent
LEVELS = (
    {"problem", "dtypes", "_torch_internals"},
    {"checks", "scalars", "reference", "backends", "distributed"},
    {"triton_kernels", "ops"},
    {"autograd", "memory_bank"},
    {"losses", "tools"},
    {"integrations", "__init__", "__main__"},
)
"""Each entry of the package may import itself, and entries of the lines above its own."""

SOURCES = ("fused_contrastive", "triton_kernels")
FOLDERS = (*SOURCES, "csrc", "tests", "bench", "examples")
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def sources() -> dict[str, list[Path]]:
    """Return the files by the module of the package that they belong to."""
    found = {path.stem: [path] for path in ROOT.glob("*.py")}
    for package in (*ROOT.glob("*/__init__.py"), REPOSITORY / "triton_kernels/__init__.py"):
        found.setdefault(package.parent.name, []).extend(sorted(package.parent.rglob("*.py")))
    return found


def depth_of(path: Path) -> int:
    """Return how many folders lie between the package and a file."""
    below = path.relative_to(ROOT if path.is_relative_to(ROOT) else REPOSITORY)
    return len(below.parts) - 1


def files(*folders: str, kinds=(".py",)) -> list[Path]:
    found = (path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*")))
    return [x for x in found if x.suffix in kinds and "__pycache__" not in x.parts]


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(REPOSITORY)}:{line}"


def imported_modules(path: Path, depth: int) -> set[str]:
    """Return the modules of the package that a file imports anywhere, also inside functions.

    `depth` is the number of folders between the package and the file.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            up = node.level - depth
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
    """Every entry imports only from the levels before it, as losses do from autograd."""
    entries = sources()
    assert {"losses", "autograd", "ops", "backends", "triton_kernels"} <= set(entries)
    for module, paths in entries.items():
        assert module in LEVEL, f"give {module} a level in {Path(__file__).name}"
        for path in paths:
            for other in imported_modules(path, depth_of(path)):
                assert other in LEVEL, f"{path.name} imports {other}, which has no level"
                assert LEVEL[other] < LEVEL[module] or other == module, (
                    f"{path.name} ({module}) must not import {other}"
                )


def test_backends_have_identical_signatures():
    """A backend is a module with `refusal`, `status` and one function per op.

    A function takes the named tuples that the function of panels takes. Where the module lists it
    in FLAT, it takes the op's arguments without the backend.
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
    for backend in dispatch.NAMES[1:]:
        module = dispatch.module(backend)
        assert callable(module.refusal) and callable(module.status), backend
        if module.status().startswith("available"):
            assert all(callable(getattr(module, name, None)) for name in ops), backend
            for name in set(ops) & set(_codec.TYPED) - set(getattr(module, "FLAT", ())):
                theirs, ours = (inspect.signature(getattr(m, name)) for m in (module, panels))
                assert list(theirs.parameters) == list(ours.parameters), (backend, name)


@pytest.mark.parametrize("name", [n for n in fc.__all__ if not n.endswith(("backend", "backends"))])
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
    for function in (fc.backends, fc.set_backend, fc.use_backend):
        assert inspect.getdoc(function)
    public = {n for n, x in vars(fc).items() if not n.startswith("_") and not inspect.ismodule(x)}
    assert public == set(fc.__all__)


def test_reference_has_the_signatures_of_the_losses():
    """The specification takes the same arguments with the same defaults.

    It has no backend, and most of it is for one process.
    """
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
        for key in ("group", "strategy"):
            if key not in theirs:
                ours.pop(key, None)
        assert list(ours) == list(theirs), name
        for key, parameter in ours.items():
            # The default of a group is None there, where nothing warns.
            same = key == "group" or parameter.default == theirs[key].default
            assert same and parameter.kind == theirs[key].kind, (name, key)


def test_the_package_is_small_to_look_at():
    """The package has at most 16 entries, on at most 6 levels of imports."""
    entries = {path for path in ROOT.glob("*") if path.suffix == ".py" or path.is_dir()}
    names = sorted(path.stem for path in entries if path.name != "__pycache__")
    assert len(names) <= 16, names
    assert len(LEVELS) <= 6
    assert set(names) <= set(LEVEL), "give each a level"
    assert set(LEVEL) - set(names) <= {"triton_kernels"}, "take it out of LEVELS"


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_short_and_narrow(folder):
    """Every file has fewer than 400 lines, and each line has at most 100 characters."""
    wrong = []
    for path in files(folder, kinds=(".py", ".h", ".cpp", ".cu", ".cuh")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) >= 400:
            wrong.append(f"{path.relative_to(REPOSITORY)} has {len(lines)} lines")
        wrong += [
            f"{place(path, number)} has {len(line)} characters"
            for number, line in enumerate(lines, 1)
            if len(line) > 100
        ]
    assert not wrong, "\n".join(["", *wrong])


def test_formatting_is_left_alone_in_data_only():
    """`fmt: skip` may stand behind a table of a test module, and nowhere else."""
    wrong = []
    for path in files(*(folder for folder in FOLDERS if folder != "csrc")):
        text = path.read_text(encoding="utf-8")
        tables = [
            range(node.lineno, node.end_lineno + 1)
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign | ast.AnnAssign) and "tests" in path.parts
        ]
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            line = token.start[0]
            if token.type == tokenize.COMMENT and "fmt:" in token.string:
                if not any(line in table for table in tables):
                    wrong.append(place(path, line))
    assert not wrong, wrong


def is_boundary(call: ast.Call) -> bool:
    """Return whether a call crosses into torch's dispatcher or a kernel, which take positions only.

    Such calls are `launch(kernel, grid, ...)`, the operators of a compiled library, registered ops
    (`ops.name(...)`, `OPS.name(...)`) and the `apply` of an autograd Function. The modules of
    autograd choose between the last two, and name their choice `call`.
    """
    name = last_name(call.func)
    owner = last_name(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    return name in ("launch", "apply", "call") or owner.lower().endswith(("operators", "ops"))


def last_name(node: ast.expr) -> str:
    """Return the last name of what is called or looked into.

    For `tiles.operators(x)` this is "operators".
    """
    if isinstance(node, ast.Call):
        node = node.func
    return getattr(node, "attr", getattr(node, "id", ""))


def calls_outside_kernels(node: ast.AST):
    """Yield all calls but those inside Triton's jitted functions.

    These know no keyword arguments.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and any(
            "jit" in ast.unparse(decorator) for decorator in child.decorator_list
        ):
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from calls_outside_kernels(child)


def test_calls_name_their_arguments():
    """A call has at most six arguments by position.

    The file that packs an op's flat arguments is the exception.
    """
    wrong = []
    for path in files(*SOURCES):
        if path.name == "_codec.py":
            continue
        for call in calls_outside_kernels(ast.parse(path.read_text(encoding="utf-8"))):
            given = [x for x in call.args if not isinstance(x, ast.Starred)]
            if len(given) > 6 and not is_boundary(call):
                wrong.append(f"{place(path, call.lineno)} {ast.unparse(call.func)}: {len(given)}")
    assert not wrong, "\n".join(["", *wrong])


def test_docstrings_say_something():
    """No docstring only sends the reader to another place."""
    wrong = []
    for path in files(*SOURCES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                document = ast.get_docstring(node) or ""
                if re.fullmatch(r"See [^.]*(\.py)?\.?", document):
                    wrong.append(f"{place(path, getattr(node, 'lineno', 1))}: {document}")
    assert not wrong, "\n".join(["", *wrong])


def test_every_folder_is_installed():
    """The package's folders are those that pyproject.toml lists."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^  "(fused_contrastive[.\w]*)",$', text, re.MULTILINE))
    found = {
        ".".join(("fused_contrastive", *path.parent.relative_to(ROOT).parts))
        for path in ROOT.rglob("__init__.py")
    }
    assert listed == found | {"fused_contrastive.triton_kernels"}
