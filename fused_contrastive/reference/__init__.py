"""The textbook eager losses, which are dense and serve any device and any float dtype.

They are the specification of the package and the baseline of every benchmark. Each function has
the signature of its fused counterpart in the file of the same name in losses/, less ``backend``.
Nothing here imports from losses/, and losses/ takes nothing but these functions.

The public functions of every file without a leading underscore are exported, so that a new loss is
its file alone.
"""

import importlib as _importlib
import inspect as _inspect
import pkgutil as _pkgutil
import typing as _typing

from ._dense import sigmoid_sum as sigmoid_sum
from ._dense import similarity as similarity

if _typing.TYPE_CHECKING:
    # Type checkers do not see what the loop below exports.
    def __getattr__(name: str) -> _typing.Any: ...


__all__ = ["sigmoid_sum", "similarity"]

for _file in _pkgutil.iter_modules(__path__):
    if _file.name.startswith("_"):
        continue
    _module = _importlib.import_module(f"{__name__}.{_file.name}")
    for _name, _function in _inspect.getmembers(_module, _inspect.isfunction):
        if _function.__module__ == _module.__name__ and not _name.startswith("_"):
            globals()[_name] = _function
            __all__ += [_name]
