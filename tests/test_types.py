"""Type checkers know the public names: the stub is made from the signatures, and users' code fits.

`make types` runs mypy and pyright over the stub and over `typing/users.py`.
"""

import sys
from pathlib import Path

from support import stub

import fused_contrastive as fc

STUB = Path(fc.__file__).with_suffix(".pyi")


def test_the_stub_is_that_of_the_signatures():
    assert stub.stub() == STUB.read_text(), "run: python tests/test_types.py --update"


def test_the_stub_is_installed():
    text = (STUB.parent.parent / "pyproject.toml").read_text()
    for name in ("py.typed", STUB.name):
        assert (STUB.parent / name).exists() and f'"{name}"' in text


def test_a_user_file_has_every_public_name():
    text = (Path(__file__).parent / "typing/users.py").read_text()
    assert [name for name in fc.__all__ if f"fc.{name}(" not in text] == []


if __name__ == "__main__":
    assert sys.argv[1:] == ["--update"]
    STUB.write_text(stub.stub())
