"""The source hash of every kernel, from the files alone.

It needs neither Triton nor a GPU, and the file may be loaded outside the package.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path


def kernel_hashes() -> dict[str, str]:
    """``{kernel: hash}`` over a kernel, the device functions it calls and the constants they read.

    Kernels are the ``@triton.jit`` functions that no other one calls and whose names do not begin
    with an underscore. Comments, docstrings and layout do not count.
    """
    device, constants = _definitions()
    known = device.keys() | constants.keys()
    used = {name: _names(node) & known - {name} for name, node in device.items()}
    called = set().union(*used.values())
    hashes = {}
    for name in sorted(device.keys() - called):
        if name.startswith("_"):
            continue
        reached, pending = set(), [name]
        while pending:
            current = pending.pop()
            if current not in reached:
                reached.add(current)
                pending += used.get(current, ())
        parts = [device[part] if part in device else constants[part] for part in sorted(reached)]
        code = repr([_canonical(part) for part in parts])
        hashes[name] = hashlib.sha256(code.encode()).hexdigest()[:16]
    return hashes


def _definitions() -> tuple[dict[str, ast.FunctionDef], dict[str, ast.Assign]]:
    """The device functions, and the constants ``NAME = tl.constexpr(...)``, by name."""
    device, constants = {}, {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(d).startswith("triton.jit") for d in node.decorator_list
            ):
                if node.name in device:
                    raise ValueError(f"two device functions are named {node.name}")
                device[node.name] = node
            elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(
                "tl.constexpr("
            ):
                constants[ast.unparse(node.targets[0])] = node
    return device, constants


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _canonical(node):
    """The syntax tree as nested tuples, the same for every version of Python.

    Docstrings are left out, and so are fields that are empty: newer versions add some.
    """
    if isinstance(node, list):
        return tuple(_canonical(part) for part in node if not _is_text(part))
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, value) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind"))
    kept = ((name, _canonical(value)) for name, value in fields if value not in (None, []))
    return type(node).__name__, *kept


def _is_text(node) -> bool:
    """Whether this is a statement that is only a string."""
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
