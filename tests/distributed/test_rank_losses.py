"""Every loss over ranks has the value and the gradients of one process with the whole batch."""

import pytest
import torch
from support import cases, rank_cases
from support.rank_cases import LATER, LAYOUTS, takes_ranks
from support.yardstick import relative_error

CASES = [
    pytest.param(
        case.name,
        marks=pytest.mark.xfail(reason="not over ranks yet") if rank_cases.is_later(case) else (),
    )
    for case in cases.BY_NAME.values()
]


def test_every_loss_takes_a_group():
    """The losses that take no group are listed in one place."""
    functions = {case.function for case in cases.BY_NAME.values()}
    assert {name for name in functions if not takes_ranks(name)} <= {*LATER}


@pytest.mark.parametrize("world", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_one_process(name, world, pool):
    """Losses, metrics and gradients in float64 are those of one process up to 1e-10.

    The cases take the options and their combinations from cases.py. Every layout meets both
    strategies, and the reductions follow one another from run to run and from case to case.
    """
    case, runs = cases.BY_NAME[name], rank_cases.plan(name, world)
    found = pool.run(world, rank_cases.on_one_rank, name, runs)
    for run, results in zip(runs, zip(*found, strict=True), strict=True):
        sizes, _, reduction, _ = run
        losses, metrics, gradients = rank_cases.in_one_process(name, sizes, reduction)
        for rank, ((loss, measured, _), expected) in enumerate(zip(results, losses, strict=True)):
            close(loss, expected, run)
            for key, x in (measured or {}).items():
                wanted = metrics[key]
                if key == "logsumexp":
                    wanted = rank_cases.own_logsumexp(case, wanted, sizes, rank)
                close(x, wanted, (run, key))
        inputs, _ = rank_cases.draw(case, sizes)
        total = rank_cases.together(case, [x[2] for x in results], inputs, sizes)
        for key, x in gradients.items():
            expected = torch.zeros_like(total[key]) if x is None else x
            close(total[key], expected, (run, key))


def close(found, expected, what):
    torch.testing.assert_close(
        found, expected, rtol=1e-10, atol=1e-10, msg=lambda text: f"{what}: {text}"
    )


ROUNDED = ("nt_xent", "nt_xent-options", "info_nce-symmetric", "clip-options", "siglip", "dcl")
UNEVEN = (11, 4, 9)
SEEDS = tuple(range(5))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("strategy", rank_cases.STRATEGIES)
@pytest.mark.parametrize("name", [x for x in CASES if x.values[0] in ROUNDED])
def test_error(name, strategy, dtype, pool):
    """The median error in other dtypes is at most that of one process, or a few ulp."""
    case, run = cases.BY_NAME[name], (UNEVEN, strategy, "none", dtype)
    found = pool.run(3, rank_cases.on_one_rank, name, (run,), SEEDS, 16)
    ours, theirs = [], []
    for seed, results in zip(SEEDS, zip(*found, strict=True), strict=True):
        inputs, _ = rank_cases.draw(case, UNEVEN, dtype, seed, 16)
        where = name, UNEVEN, "none", dtype, seed, 16
        truth, _, exact = rank_cases.in_one_process(*where)
        losses, _, gradients = rank_cases.in_one_process(*where, wide=False)
        total = rank_cases.together(case, [x[2] for x in results], inputs, UNEVEN)
        truth, losses = torch.cat(truth), torch.cat(losses)
        ours.append({"loss": relative_error(torch.cat([x[0] for x in results]), truth)})
        theirs.append({"loss": relative_error(losses, truth)})
        for key, x in exact.items():
            ours[-1][key] = relative_error(total[key], x)
            theirs[-1][key] = relative_error(gradients[key], x)
    for key in ours[0]:
        error, bound = (torch.tensor([x[key] for x in y]).median() for y in (ours, theirs))
        slack = max(1.5 * bound, 4 * torch.finfo(dtype).eps)
        assert error <= slack, f"{key}: error {error:.2e}, of one process {bound:.2e}"
