"""The rows of the table in docs/drop_ins.md are complete and keep what they promise."""

from __future__ import annotations

import inspect

import pytest

from bench import memory, peers

IDS = [f"{case.package}.{case.loss} {case.options} {case.rows}" for case in peers.CASES]


@pytest.mark.parametrize("case", peers.CASES, ids=IDS)
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_rows_agree(case, streams):
    found = peers.agreement(case)
    assert found["value"] < 1e-13
    assert found["gradient"] < 1e-13
    assert found["fp32_gradient_ours"] < 2 * found["fp32_gradient_package"] + 1e-6


def test_every_loss_has_a_row():
    rows = {(case.package, case.loss) for case in peers.CASES}
    for package in peers.NAMES:
        case = next(case for case in peers.CASES if case.package == package)
        ours = peers.modules(case)[0]
        losses = {name for name in ours.__all__ if inspect.isclass(getattr(ours, name))}
        # The rows of the plain losses stand for these.
        exempt = {"CoCaLoss", "DistillClipLoss", "InfoNCE", "DirectCLRLoss"}
        exempt |= {name for name in losses if name.startswith(("Cached", "Sparse"))}
        assert losses - exempt <= {loss for p, loss in rows if p == package}


@pytest.mark.skipif(memory.unsupported() is not None, reason=str(memory.unsupported()))
def test_a_thousand_pairs_in_a_hundred_megabytes(streams):
    """pytorch-metric-learning's NTXentLoss of two views needs less than 100 MB at 1024 pairs.

    The package makes a matrix of positive by negative pairs, which takes 34 GB there.
    """
    (case,) = (c for c in peers.CASES if not c.package_fits)
    assert (case.loss, case.rows) == ("NTXentLoss", 1024)
    ours, _ = peers.modules(case)
    assert peers.peak(case, ours) < 100e6
