"""The losses of an integration in the place of the package's own.

Trainers that build their loss themselves get ours in this way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

from ..backends._warnings import PACKAGE, warn
from ._classes import TABLES


class Patch:
    """What `patch` of an integration replaced; it undoes this, also at the end of a ``with`` block.

    Attributes:
        replaced: the names that mean our losses now, such as ``"open_clip.factory.ClipLoss"``.
        kept: the package's other losses, which stay its own.
        held: names outside the package that still mean its own losses, such as
            ``"__main__.ClipLoss"``, because they were imported before.
    """

    def __init__(self, patcher: Patcher):
        self._patcher, self._first = patcher, not patcher.active
        self.replaced = patcher.swap(patcher.ours)
        self.kept = patcher.kept
        self.held = patcher.held()
        patcher.active = True
        if self.held:
            warn(
                f"{', '.join(self.held)} was imported before patch() and stays the loss of "
                f"{patcher.root}: import it afterwards, or import it from {patcher.integration}",
            )

    def undo(self) -> None:
        """Give the package its own losses back. Losses that were built in between stay ours."""
        self._patcher.swap(self._patcher.theirs)
        self._patcher.active = False

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_) -> None:
        # A `with` block inside another patch leaves that one in place.
        if self._first:
            self.undo()

    def __repr__(self) -> str:
        lines = [f"{self._patcher.root} with the losses of {self._patcher.integration}"]
        for what, names in (
            ("replaced", self.replaced),
            ("stays the package's own", self.kept),
            ("imported before, stays the package's own", self.held),
        ):
            lines += [f"  {what}: {', '.join(names)}"] if names else []
        return "\n".join(lines)


class Patcher:
    """The losses of one integration and of its package, each in the place of the other on demand.

    Args:
        integration: the name of the integration's module.
        ours: our losses by the package's own.
    """

    def __init__(self, integration: str, ours: dict):
        self.integration, self.ours, self.active = integration, ours, False
        self.theirs = {mine: theirs for theirs, mine in ours.items()}
        self.root = next(iter(ours)).__module__.partition(".")[0]
        lines = TABLES[integration.rpartition(".")[2]].lines
        self.kept = sorted(name for line in lines if line.instead for name in line.names)

    def belongs(self, name: str) -> bool:
        """Whether a module is the package's, or of another package that has its trainer."""
        return name.partition(".")[0] in (self.root, f"{self.root}_train")

    def swap(self, places: dict) -> list[str]:
        """Replace losses wherever the package's modules hold them, and list the names."""
        found = _holders(places, self.belongs)
        for module, attribute, loss in found:
            setattr(module, attribute, places[loss])
        return sorted(f"{module.__name__}.{attribute}" for module, attribute, _ in found)

    def held(self) -> list[str]:
        """The names outside the package, and outside ours, that mean the package's own losses."""

        def outside(name: str) -> bool:
            return not self.belongs(name) and name.partition(".")[0] != PACKAGE

        found = _holders(self.ours, outside)
        return sorted(f"{module.__name__}.{attribute}" for module, attribute, _ in found)


def _holders(losses: dict, wanted: Callable) -> list[tuple[ModuleType, str, object]]:
    """The modules of wanted names, with their attributes that are one of these losses."""
    identities = {id(loss) for loss in losses}
    # A module may be there under several names.
    modules = {id(x): x for x in list(sys.modules.values()) if isinstance(x, ModuleType)}
    return [
        (module, attribute, value)
        for module in modules.values()
        if wanted(module.__name__)
        for attribute, value in list(vars(module).items())
        if id(value) in identities
    ]


def patching(integration: str, pairs: dict) -> Callable[[], Patch]:
    """The function `patch` of an integration, whose losses are `pairs` by the package's own."""
    patcher = Patcher(integration, pairs)

    def patch() -> Patch:
        return Patch(patcher)

    package, first = patcher.root, next(iter(pairs.values())).__name__
    patch.__doc__ = f"""Let the modules of {package} use the losses from here.

    For programs that build their loss inside {package}, or import it from there later on. Losses
    that are built already stay as they are. A name that was imported from {package} before stays
    the package's own, and a warning says which. A second call finds nothing left to do.

    Returns:
        What was replaced, what stays the package's own, and ``undo()``. As a context manager it
        undoes the patch at the end of the block. Print it to see the names.

    Example::

        from {integration} import patch

        print(patch())  # replaced: ...{first}, ...
    """
    patch.__module__ = integration
    return patch
