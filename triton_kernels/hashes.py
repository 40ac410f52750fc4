"""Source hash of every kernel, from the files alone: needs neither Triton nor a GPU, and may be loaded outside the package."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from pathlib import Path


def kernel_hashes() -> dict[str, str]:
    """``{kernel: hash}`` over the code of the kernel, of the device functions it calls and of the constants they read.

    Kernels are the ``@triton.jit`` functions that no other one calls and whose names do not begin with an underscore. Comments,
    docstrings and layout do not count.
    """
    device, constants = _definitions()
    used = {
        name: _names(node) & (device.keys() | constants.keys()) - {name}
        for name, (node, _) in device.items()
    }
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
        code = "\n".join(
            device[part][1] if part in device else constants[part] for part in sorted(reached)
        )
        hashes[name] = hashlib.sha256(code.encode()).hexdigest()[:16]
    return hashes


def _definitions() -> tuple[dict[str, tuple[ast.FunctionDef, str]], dict[str, str]]:
    """(device functions with their code, constants ``NAME = tl.constexpr(...)``), by name."""
    device, constants = {}, {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(d).startswith("triton.jit") for d in node.decorator_list
            ):
                if node.name in device:
                    raise ValueError(f"two device functions are named {node.name}")
                device[node.name] = node, _code(ast.get_source_segment(source, node))
            elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(
                "tl.constexpr("
            ):
                constants[ast.unparse(node.targets[0])] = ast.unparse(node)
    return device, constants


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _code(source: str) -> str:
    """The tokens, without comments, line breaks inside statements, and docstrings."""
    kept, fresh = [], True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        if fresh and token.type == tokenize.STRING:
            continue
        fresh = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT) or (
            fresh and not token.string
        )
        indentation = token.type in (tokenize.INDENT, tokenize.DEDENT)
        kept.append(tokenize.tok_name[token.type] if indentation else token.string)
    return " ".join(kept)
