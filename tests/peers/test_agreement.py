"""The helpers see what they are there to see.

The other tests here hold for all integrations alike.
"""

from __future__ import annotations

import copy
import importlib
import pickle

import agreement
import pytest
import torch
from agreement import agree, draw

from bench import peers
from fused_contrastive.integrations._common import FallbackWarning


def mean_square(x):
    return (x**2).mean()


@pytest.mark.parametrize("dtype", agreement.DTYPES)
@pytest.mark.parametrize(
    "wrong",
    (
        lambda x: 1.05 * mean_square(x),
        lambda x: mean_square(x) + 0.1 * (x - x.detach()).sum(),
        lambda x: mean_square(x).to(torch.float16 if x.dtype != torch.float16 else torch.float32),
        lambda x: mean_square(x)[None],
        lambda x: mean_square(x) * float("nan"),
    ),
)
def test_differences_are_seen(wrong, dtype):
    (x,) = draw((6, 4))
    agree(mean_square, mean_square, [x], dtype)
    with pytest.raises(AssertionError):
        agree(wrong, mean_square, [x], dtype)


def test_a_fallback_is_an_error_where_nothing_may_fall_back(streams):
    loss = importlib.import_module("fused_contrastive.integrations.info_nce").InfoNCE(temperature=0)
    with pytest.raises(FallbackWarning):
        loss(*draw((4, 3), (4, 3)))


def test_a_fallback_is_told_once(recwarn):
    loss = importlib.import_module("fused_contrastive.integrations.info_nce").InfoNCE(
        temperature=float("inf")
    )
    for _ in range(3):
        loss(*draw((4, 3), (4, 3)))
    assert [w.category for w in recwarn if w.category is FallbackWarning] == [FallbackWarning]


SMALL = [
    case
    for case in peers.CASES
    if case.package_fits and case.options in ("", "two views", "all directions", "ref_emb")
]
IDS = [f"{case.package}.{case.loss} {case.options}" for case in SMALL]


@pytest.mark.parametrize("case", SMALL, ids=IDS)
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_rows_of_zeros_equal_rows_and_strides(case, streams):
    ours, package = (case.build(module, 6) for module in peers.modules(case))
    drawn = peers.inputs(case, 6, torch.float64)
    for x in drawn:
        if x.dim() == 2:
            x[1] = 0
            x[4] = x[3]
    if case.loss != "BarlowTwinsLoss":
        drawn[1:2] = [drawn[1].flip(0)] if len(drawn) > 1 else []
    agree(ours, package, drawn)
    transposed = [
        lambda *x, f=f: f(*(y.T if y.dim() == 2 else y for y in x)) for f in (ours, package)
    ]
    agree(*transposed, [x.T.contiguous() if x.dim() == 2 else x for x in drawn])


@pytest.mark.parametrize("first", (torch.float16, torch.float64))
@pytest.mark.parametrize("case", SMALL, ids=IDS)
@pytest.mark.filterwarnings("ignore")
def test_other_dtypes_inside_autocast(case, first):
    """Inside autocast to bfloat16, inputs of other dtypes are treated as the package treats them.

    The inputs are float16, or float64 beside float32, which autocast leaves as it is. Some of
    torch's operations refuse them.
    """
    ours, package = (case.build(module, 6) for module in peers.modules(case))
    rows, *others = peers.inputs(case, 6, torch.float32)
    drawn = [
        rows.to(first),
        *(x.half() if first == torch.float16 and x.dim() else x for x in others),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        try:
            expected = package(*drawn)
        except RuntimeError:
            agreement.same_error(ours, package, *drawn)
        else:
            torch.testing.assert_close(ours(*drawn), expected)


COMPILED = [
    case
    for case in peers.CASES
    if case.options == "" and case.loss in ("ClipLoss", "NTXentLoss", "info_nce")
]


@pytest.mark.no_poison
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: f"{case.package}.{case.loss}")
def test_compiles_in_one_graph(case, streams):
    loss = case.build(peers.modules(case)[0], 6)
    agree(
        torch.compile(loss, fullgraph=True, backend="aot_eager"),
        loss,
        peers.inputs(case, 6, torch.float64),
    )


@pytest.mark.parametrize("package", [*peers.NAMES, "supcontrast"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_losses_are_copied_and_pickled(package):
    module = importlib.import_module(f"fused_contrastive.integrations.{package}")
    arguments = {"NT_Xent": (4, 0.5, 1), "CoCaLoss": (1.0, 1.0)}
    model = torch.nn.Sequential(torch.nn.Identity())
    for name in module.__all__:
        kind = getattr(module, name)
        if isinstance(kind, type):
            given = (model,) if package == "sentence_transformers" else ()
            if "GIST" in name:
                from guided import Columns

                given = Columns("own"), Columns("guide")
            loss = kind(*arguments.get(name, given))
            for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
                assert type(again) is kind
