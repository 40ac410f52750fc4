"""Every rank of test_distributed.py runs this file.

It runs the losses over several processes, ours and the packages'. It prints nothing and writes the
differences to a file.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

# conftest prepares the environment that the packages need.
import conftest  # noqa: F401
import guided
import torch
from agreement import agree, draw
from torch import distributed

from fused_contrastive.distributed.groups import agreements
from fused_contrastive.integrations._common import MeanOfRanks, ScaledGradient

N, D = 4, 5
OPEN_CLIP = [
    ("ClipLoss", {"local_loss": local, "gather_with_grad": grad})
    for local, grad in itertools.product((False, True), repeat=2)
]
OPEN_CLIP += [
    ("SigLipLoss", {"dist_impl": name}) for name in ("bidir", "shift", "reduce", "gather")
]
LIGHTLY = [(name, {"temperature": 0.3}) for name in ("NTXentLoss", "DCLLoss", "DCLWLoss")]
LIGHTLY += [("BarlowTwinsLoss", {"lambda_param": 0.5})]
RANKING = [
    {},
    {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
    {"hardness_mode": "all_negatives", "hardness_strength": 3.0},
]
ELSEWHERE = (
    "{'local_loss': True, 'gather_with_grad': False}",
    "memory bank",
    "GISTEmbedLoss",
    "pytorch_metric_learning",
)
"""The cases that communicate by other means than the losses over ranks."""


class Average(torch.autograd.Function):
    """x, with the mean of the ranks' gradients, as DistributedDataParallel gives it."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        distributed.all_reduce(g)
        return g / distributed.get_world_size()


def with_averages(loss):
    """The loss, where the gradients of scalars are averaged."""
    return lambda *x: loss(*(Average.apply(y) if y.dim() == 0 else y for y in x))


def open_clip(rank, world):
    from open_clip import loss as peer

    from fused_contrastive.integrations import open_clip as ours

    scalars = [torch.tensor(v, dtype=torch.float64) for v in (2.5, -1.5)]
    for name, options in OPEN_CLIP:
        pair = (
            getattr(module, name)(rank=rank, world_size=world, **options) for module in (ours, peer)
        )
        if name == "ClipLoss":
            # A rank's gradient of the scale is a share.
            pair = map(with_averages, pair)
        yield f"open_clip.{name} {options}", pair, [*draw((N, D), (N, D), seed=rank), *scalars]
    for name, options in OPEN_CLIP:
        if name == "ClipLoss":
            pair = (m.DistillClipLoss(rank=rank, world_size=world, **options) for m in (ours, peer))
            teacher = (*draw((N, 3), (N, 3), seed=10 + rank), 4.0)
            pair = (
                with_averages(lambda *x, loss=loss, y=teacher: torch.stack(loss(*x, *y)))
                for loss in pair
            )
            inputs = [*draw((N, D), (N, D), seed=rank), scalars[0]]
            yield f"open_clip.DistillClipLoss {options}", pair, inputs


def lightly(rank, world):
    from lightly import loss as peer

    from fused_contrastive.integrations import lightly as ours

    for name, options in LIGHTLY:
        pair = (
            getattr(module, name)(gather_distributed=True, **options) for module in (ours, peer)
        )
        yield f"lightly.{name}", pair, draw((N, D), (N, D), seed=rank)

    bank = torch.nn.functional.normalize(
        torch.randn(20, D, generator=torch.Generator().manual_seed(0)), dim=1
    )

    def banked(module):
        loss = module.NTXentLoss(memory_bank_size=(20, D), gather_distributed=True)

        def value(*x):
            loss.memory_bank.bank = bank.to(x[0].dtype, copy=True)
            loss.memory_bank.bank_ptr.zero_()
            out = loss(*x)
            stored = loss.memory_bank.bank.sum()
            return torch.stack([out, stored])

        return value

    yield (
        "lightly.NTXentLoss memory bank",
        (banked(ours), banked(peer)),
        draw((N, D), (N, D), seed=rank),
    )


def sentence_transformers(rank, world):
    from sentence_transformers.sentence_transformer import losses as peer

    from fused_contrastive.integrations import sentence_transformers as ours

    for options in RANKING:
        pair = (
            lambda *x, m=module, o=options: m.MultipleNegativesRankingLoss(
                None, scale=4.0, gather_across_devices=True, **o
            ).compute_loss_from_embeddings(list(x), None)
            for module in (ours, peer)
        )
        yield f"sentence_transformers {options}", pair, draw((N, D), (N, D), (N, D), seed=rank)

    for name in (guided.NAME, guided.CACHED):
        pair = guided.pair(name, temperature=0.3, margin=0.1, gather_across_devices=True)
        for negatives in (0, 1):
            drawn = draw(*[(N, D)] * (4 + 2 * negatives), seed=rank)
            yield f"sentence_transformers {name} {negatives}", pair, drawn


def pytorch_metric_learning(rank, world):
    from pytorch_metric_learning import losses as peer
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    from fused_contrastive.integrations import pytorch_metric_learning as ours

    labels = torch.tensor([0, 1, rank, 1])
    for name, efficient in itertools.product(("NTXentLoss", "SupConLoss"), (False, True)):
        wrapped = [
            DistributedLossWrapper(getattr(module, name)(), efficient=efficient)
            for module in (ours, peer)
        ]
        pair = (lambda x, loss=loss: loss(x, labels) for loss in wrapped)
        yield f"pytorch_metric_learning.{name} efficient={efficient}", pair, draw((N, D), seed=rank)


def of_all_ranks(loss, everyone, rank, world):
    """A package's loss in one process, which has the rows of all ranks.

    Each rank's gradient is W times that of the loss, so that the mean over ranks is exact.
    """

    def value(*own):
        own = [ScaledGradient.apply(x, world) for x in own]
        parts = [own if r == rank else everyone[r] for r in range(world)]
        return loss(*(torch.cat(x) for x in zip(*parts, strict=True)))

    return value


def global_mean(loss):
    """The mean of the ranks' losses, with the gradient of their sum."""
    return lambda *x: MeanOfRanks.apply(loss(*x), distributed.group.WORLD)


def simclr(rank, world):
    """Over ranks the package pairs rows of different samples, but not in one process."""
    from simclr.modules import NT_Xent as Peer

    from fused_contrastive.integrations.simclr import NT_Xent as Ours

    for more in (0, 1):
        rows = [N + more * r for r in range(world)]
        everyone = [draw((n, D), (n, D), seed=r) for r, n in enumerate(rows)]
        theirs = of_all_ranks(Peer(sum(rows), 0.5, 1), everyone, rank, world)
        yield f"simclr.NT_Xent {rows}", (Ours(N, 0.5, world), theirs), everyone[rank]


def uneven(rank, world):
    """The last batch of an epoch may be uneven, which the packages' own gathers do not allow.

    The mean over the ranks is then that over all rows, which the packages compute in one process.
    """
    from lightly import loss as lightly_peer
    from sentence_transformers.sentence_transformer import losses as ranking_peer

    from fused_contrastive.integrations import lightly as ours
    from fused_contrastive.integrations import sentence_transformers as ours_ranking

    def two(n, r):
        return draw((n, D), (n, D), seed=r)

    everyone = [two(N + r, r) for r in range(world)]
    for name in ("NTXentLoss", "DCLLoss"):
        mine = getattr(ours, name)(temperature=0.3, gather_distributed=True)
        theirs = getattr(lightly_peer, name)(temperature=0.3)
        theirs = of_all_ranks(theirs, everyone, rank, world)
        yield f"lightly.{name} uneven", (global_mean(mine), theirs), everyone[rank]
    for options in RANKING:
        mine, theirs = (
            lambda *x, m=module, o={**options, **more}: m.MultipleNegativesRankingLoss(
                None, scale=4.0, **o
            ).compute_loss_from_embeddings(list(x), None)
            for module, more in (
                (ours_ranking, {"gather_across_devices": True}),
                (ranking_peer, {}),
            )
        )
        theirs = of_all_ranks(theirs, everyone, rank, world)
        name = f"sentence_transformers uneven {options}"
        yield name, (global_mean(mine), theirs), everyone[rank]
    # Barlow Twins standardises by rank, and lightly's own code weights all ranks alike.
    pair = (m.BarlowTwinsLoss(gather_distributed=True) for m in (ours, lightly_peer))
    yield "lightly.BarlowTwinsLoss uneven", pair, everyone[rank]


def main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(str(Path(folder, "store")), world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found = {}
    families = (open_clip, lightly, sentence_transformers, pytorch_metric_learning)
    families += (simclr, uneven)
    for family in families if world > 2 else families[:1]:
        for name, (ours, theirs), inputs in family(rank, world):
            before = agreements()
            try:
                agree(ours, theirs, inputs)
                elsewhere = any(part in name for part in ELSEWHERE)
                found[name] = "equal"
                if elsewhere == (agreements() > before):
                    found[name] = "equal, but computed by other means than expected"
            except AssertionError as error:
                found[name] = str(error)
            except BaseException as error:
                # A skip, for example, is no ordinary Exception.
                found[name] = f"{type(error).__name__}: {error}"
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    # An ordinary end of the interpreter may meet threads of gloo that still run, and abort.
    os._exit(0)
