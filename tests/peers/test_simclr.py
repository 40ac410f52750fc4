"""The integration of Spijkervet/SimCLR agrees with the installed package."""

import agreement
import pytest
import torch
from agreement import DTYPES, SIZES, agree, draw, same_error
from simclr.modules import NT_Xent as Peer

from fused_contrastive.integrations.simclr import NT_Xent as Ours


def pair(*arguments):
    return Ours(*arguments), Peer(*arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", (0.5, 0.07, -1.0))
def test_equal(temperature, dtype, streams):
    for n, d in SIZES:
        agree(*pair(n, temperature, 1), draw((n, d), (n, d)), dtype)


@pytest.mark.parametrize("autocast", (torch.bfloat16, torch.float16))
def test_equal_in_autocast(autocast, streams):
    agree(*pair(13, 0.5, 1), draw((13, 16), (13, 16)), torch.float32, autocast)


@pytest.mark.parametrize("norm", (1e-7, 1e-9))
def test_short_rows(norm, streams):
    """Cosine similarity raises short norms to 1e-8, and its gradient ignores this."""
    agree(*pair(4, 0.5, 1), [norm * x for x in draw((4, 3), (4, 3))])


def test_norms_that_overflow(streams):
    """A norm that overflows is infinite, and its row becomes 0."""
    x, y = draw((4, 3), (4, 3))
    x[1] *= 1e200
    agree(*pair(4, 0.5, 1), [x, y])


def test_rows_of_zeros(streams):
    z = draw((4, 3))[0]
    z[1] = 0
    agree(*pair(4, 0.5, 1), [z, z.flip(1)])


def test_only_the_number_of_all_rows_counts(streams):
    agree(*pair(4, 0.5, 1), draw((3, 5), (5, 5)))


def test_mask_is_built_when_asked_for():
    ours, theirs = pair(5, 0.5, 2)
    assert "mask" not in vars(ours)
    assert torch.equal(ours.mask, theirs.mask)
    assert {*vars(ours)} == {*vars(theirs)}


def test_signature():
    agreement.same_signature(Ours, Peer)


def test_errors():
    for shapes in (((3, 5), (3, 5)), ((4, 3), (4, 2)), ((4,), (4,))):
        same_error(*pair(4, 0.5, 1), *draw(*shapes))
    same_error(*pair(0, 0.5, 1), *draw((0, 3), (0, 3)))
    # There is no process group.
    same_error(*pair(4, 0.5, 2), *draw((4, 3), (4, 3)))


def test_falls_back():
    agreement.falls_back(*pair(4, 0, 1), draw((4, 3), (4, 3)), "temperature=0")
