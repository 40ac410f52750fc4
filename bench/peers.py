"""``python -m bench.peers`` compares the integrations' losses with those of the packages.

Every loss and option of fused_contrastive.integrations is compared with the installed package.
Value and gradients in float64 are relative to the package's. The float32 gradients of both are
relative to the package's in float64. Memory is the peak growth of the resident set in one forward
and backward pass in float32, over inputs and gradients. One JSON is written into bench/results.
`make bench-peers` installs the packages.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from . import environment, memory, report
from .peer_packages import prepare
from .source_tree import complete_package

complete_package()

RESULTS = environment.ROOT / "bench" / "results"
DIMENSIONS, ROWS = 128, 2048
AGREEMENT, REPEATS = 24, 3
NAMES = {
    "open_clip": "open_clip.loss",
    "lightly": "lightly.loss",
    "pytorch_metric_learning": "pytorch_metric_learning.losses",
    "info_nce": "info_nce",
    "sentence_transformers": "sentence_transformers.sentence_transformer.losses",
    "simclr": "simclr.modules",
}
"""These modules hold the packages' own losses, by integration."""


class Case(NamedTuple):
    package: str
    loss: str
    options: str
    build: Callable
    """This turns ``(module, N)`` into a loss of the inputs."""
    shapes: tuple[str, ...] = ("ND", "ND")
    """The shapes of the inputs are in the letters N, D, K and M (2N). A scalar has none."""
    rows: int = ROWS
    package_fits: bool = True


def constructed(name: str, **options):
    return lambda module, N: getattr(module, name)(**options)


def labelled(name: str, labels: Callable, **options):
    """Returns pytorch-metric-learning's losses of one set of rows."""
    return lambda module, N: lambda x: getattr(module, name)(**options)(x, labels(len(x)))


def referred(name: str):
    """Returns the same losses of rows against other rows, by the labels of both."""

    def build(module, N):
        labels = torch.arange(N)
        return lambda x, y: getattr(module, name)()(x, labels, ref_emb=y, ref_labels=labels.clone())

    return build


def mined(name: str, **options):
    """Returns the same losses of one pair in 16."""

    def build(module, N):
        from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices

        pairs = tuple(
            i[k % 2 :: 16] for k, i in enumerate(get_all_pairs_indices(torch.arange(N) % (N // 2)))
        )
        return lambda x: getattr(module, name)(**options)(x, indices_tuple=pairs)

    return build


def ranking(**options):
    """Returns sentence-transformers' loss of embeddings."""
    name = options.pop("name", "MultipleNegativesRankingLoss")

    def build(module, N):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            loss = getattr(module, name)(None, **options)
        return lambda *x: loss.compute_loss_from_embeddings(list(x), None)

    return build


def banked(size: int):
    def build(module, N):
        torch.manual_seed(0)
        loss = module.NTXentLoss(memory_bank_size=(size, DIMENSIONS))

        def value(*x):
            if loss.memory_bank.bank.dtype != x[0].dtype:
                loss.memory_bank.to(x[0].dtype)
            return loss(*x)

        return value

    return build


def info_nce(**options):
    return lambda module, N: lambda *x: module.info_nce(*x, **options)


def views(n: int) -> torch.Tensor:
    return torch.arange(n) % (n // 2)


def ten(n: int) -> torch.Tensor:
    return torch.arange(n) % 10


PAIRS, TRIPLETS = ("ND", "ND"), ("ND", "ND", "ND")
BOTH = ("query_to_doc", "doc_to_query")
ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
CASES = (
    Case("open_clip", "ClipLoss", "", constructed("ClipLoss"), ("ND", "ND", "")),
    Case("open_clip", "ClipLoss", "logit_bias", constructed("ClipLoss"), ("ND", "ND", "", "")),
    Case("open_clip", "SigLipLoss", "", constructed("SigLipLoss"), ("ND", "ND", "", "")),
    Case("lightly", "NTXentLoss", "", constructed("NTXentLoss")),
    Case("lightly", "NTXentLoss", "memory_bank_size=8192", banked(8192)),
    Case("lightly", "DCLLoss", "", constructed("DCLLoss")),
    Case(
        "lightly",
        "DCLLoss",
        "weight_fn",
        constructed("DCLLoss", weight_fn=lambda a, b: ((a - b) ** 2).sum(1)),
    ),
    Case("lightly", "DCLWLoss", "", constructed("DCLWLoss")),
    Case("lightly", "BarlowTwinsLoss", "d=2048", constructed("BarlowTwinsLoss"), ("DN", "DN")),
    Case(
        "pytorch_metric_learning",
        "NTXentLoss",
        "two views",
        labelled("NTXentLoss", views),
        ("MD",),
        rows=128,
    ),
    Case(
        "pytorch_metric_learning",
        "NTXentLoss",
        "two views",
        labelled("NTXentLoss", views),
        ("MD",),
        1024,
        False,
    ),
    Case(
        "pytorch_metric_learning",
        "NTXentLoss",
        "ten labels",
        labelled("NTXentLoss", ten),
        ("MD",),
        rows=64,
    ),
    Case("pytorch_metric_learning", "NTXentLoss", "ref_emb", referred("NTXentLoss"), rows=256),
    Case(
        "pytorch_metric_learning",
        "NTXentLoss",
        "indices_tuple",
        mined("NTXentLoss"),
        ("ND",),
        rows=512,
    ),
    Case(
        "pytorch_metric_learning", "SupConLoss", "two views", labelled("SupConLoss", views), ("MD",)
    ),
    Case(
        "pytorch_metric_learning", "SupConLoss", "ten labels", labelled("SupConLoss", ten), ("MD",)
    ),
    Case("pytorch_metric_learning", "SupConLoss", "ref_emb", referred("SupConLoss")),
    Case("pytorch_metric_learning", "SupConLoss", "indices_tuple", mined("SupConLoss"), ("ND",)),
    Case("pytorch_metric_learning", "NPairsLoss", "", labelled("NPairsLoss", views), ("MD",)),
    Case("info_nce", "info_nce", "", info_nce()),
    Case("info_nce", "info_nce", "negative_keys [8192, D]", info_nce(), ("ND", "ND", "KD")),
    Case(
        "info_nce",
        "info_nce",
        'negative_mode="paired", [N, 16, D]',
        info_nce(negative_mode="paired"),
        ("ND", "ND", "NPD"),
    ),
    Case("sentence_transformers", "MultipleNegativesRankingLoss", "", ranking()),
    Case(
        "sentence_transformers",
        "MultipleNegativesRankingLoss",
        "a hard negative",
        ranking(),
        TRIPLETS,
    ),
    Case(
        "sentence_transformers",
        "MultipleNegativesRankingLoss",
        "both directions, per_direction",
        ranking(directions=BOTH, partition_mode="per_direction"),
    ),
    Case(
        "sentence_transformers",
        "MultipleNegativesRankingLoss",
        "all directions",
        ranking(directions=ALL),
    ),
    Case(
        "sentence_transformers",
        "MultipleNegativesRankingLoss",
        'hardness_mode="all_negatives"',
        ranking(hardness_mode="all_negatives", hardness_strength=5.0),
        TRIPLETS,
    ),
    Case(
        "sentence_transformers",
        "MultipleNegativesSymmetricRankingLoss",
        "",
        ranking(name="MultipleNegativesSymmetricRankingLoss"),
    ),
    Case("simclr", "NT_Xent", "", lambda module, N: module.NT_Xent(N, 0.5, 1), rows=256),
)


def inputs(case: Case, N: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """Returns standard normal embeddings and the scalars.

    The scalars are a scale of 10 and a bias of −10, in this order.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {"N": N, "M": 2 * N, "D": DIMENSIONS, "K": 8192, "P": 16}
    drawn, scalars = [], [10.0, -10.0]
    for shape in case.shapes:
        if shape:
            drawn.append(
                torch.randn([sizes[s] for s in shape], generator=generator, dtype=torch.float64).to(
                    dtype
                )
            )
        else:
            drawn.append(
                torch.tensor(scalars[len([x for x in drawn if x.dim() == 0])], dtype=dtype)
            )
    if case.package == "open_clip":
        drawn = [torch.nn.functional.normalize(x, dim=-1) if x.dim() else x for x in drawn]
    return drawn


def modules(case: Case) -> tuple:
    """Returns our module and the package's."""
    prepare()
    ours = importlib.import_module(f"fused_contrastive.integrations.{case.package}")
    return ours, importlib.import_module(NAMES[case.package])


def value_and_gradient(loss, arguments: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in arguments]
    value = loss(*leaves)
    value.backward()
    return value.detach().double(), torch.cat([x.grad.double().flatten() for x in leaves])


def agreement(case: Case) -> dict[str, float]:
    """Returns relative differences. Those of the gradients are by norm."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        for name, module in zip(("ours", "package"), modules(case), strict=True):
            found[name, dtype] = value_and_gradient(
                case.build(module, AGREEMENT), inputs(case, AGREEMENT, dtype)
            )
    value, gradient = found["package", torch.float64]

    def error(key):
        other_value, other = found[key]
        return float((other_value - value).abs() / value.abs()), float(
            (other - gradient).norm() / gradient.norm()
        )

    keys = ("value", "gradient")
    answer = dict(zip(keys, error(("ours", torch.float64)), strict=True))
    return answer | {
        f"fp32_gradient_{name}": error((name, torch.float32))[1] for name in ("package", "ours")
    }


def peak(case: Case, module) -> int:
    """Returns the least of a few measurements of `growth`.

    Some are larger, by what the allocator happens to keep.
    """
    return min(growth(case, module) for _ in range(REPEATS))


def growth(case: Case, module) -> int:
    """Returns the bytes by which the resident set grows in a forward and backward pass in float32.

    Inputs and gradients are not counted.
    """
    value_and_gradient(case.build(module, AGREEMENT), inputs(case, AGREEMENT, torch.float32))
    loss, arguments = case.build(module, case.rows), inputs(case, case.rows, torch.float32)
    leaves = [x.requires_grad_() for x in arguments]
    memory.trim()
    before = memory.resident("VmRSS")
    memory.reset_peak()
    loss(*leaves).backward()
    grown = memory.resident("VmHWM") - before
    return max(0, grown - sum(x.numel() * x.element_size() for x in leaves))


def row(case: Case) -> dict:
    ours, package = modules(case)
    sizes = {
        "ours_bytes": peak(case, ours),
        "package_bytes": peak(case, package) if case.package_fits else None,
    }
    names = {
        "package": case.package,
        "loss": case.loss,
        "options": case.options,
        "N": case.rows,
        "D": DIMENSIONS,
    }
    return names | agreement(case) | sizes


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = (
        "open_clip_torch",
        "lightly",
        "pytorch-metric-learning",
        "info-nce-pytorch",
        "sentence-transformers",
        "simclr",
    )
    return {name: version(name) for name in names}


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.split("\n\n")[0])
    p.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the JSON (default: bench/results)"
    )
    options = p.parse_args()
    warnings.simplefilter("ignore")
    result = report.new_result(
        "peers", "python -m bench.peers", environment.describe(torch.device("cpu"))
    )
    result["packages"] = versions()
    for case in CASES:
        result["rows"].append(row(case))
        print(
            " ".join(
                f"{k}={v:.1e}" if isinstance(v, float) else f"{v}"
                for k, v in result["rows"][-1].items()
            ),
            flush=True,
        )
    result["complete"] = True
    report.write_json(result, options.out / f"peers-{result['date']}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
