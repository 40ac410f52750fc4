"""What users write, as type checkers see it. `make types` checks it, and nothing runs it.

Every public name is here. A line that ends in ``type: ignore`` is an error that the checkers must
find: mypy reports a needless one.
"""

from typing import assert_type

import torch
from torch import Tensor

import fused_contrastive as fc

WithMetrics = tuple[Tensor, dict[str, Tensor]]


def functions(z: Tensor, labels: Tensor, flag: bool) -> None:
    assert_type(fc.nt_xent_loss(z, z), Tensor)
    fc.nt_xent_loss(z, z).backward()
    assert_type(fc.nt_xent_loss(z, z, 0.1, metrics=True), WithMetrics)
    assert_type(fc.nt_xent_loss(z, z, torch.tensor(0.1), metrics=False, keys=labels), Tensor)
    assert_type(fc.nt_xent_loss(z, z, metrics=flag), Tensor | WithMetrics)
    assert_type(fc.info_nce_loss(z, z, z, negative_mode="unpaired", bias=z[0]), Tensor)
    assert_type(fc.clip_loss(z, z, 14.0, group="world", strategy="ring"), Tensor)
    assert_type(fc.clip_loss(z, z, 14.0, bias=(z[0], z[0]), metrics=True), WithMetrics)
    assert_type(fc.siglip_loss(z, z, 10.0, -10.0), Tensor)
    assert_type(fc.n_pairs_loss(z, z), Tensor)
    assert_type(fc.sup_con_loss(z, labels, positives="in"), Tensor)
    assert_type(fc.dcl_loss(z, z, metrics=True), WithMetrics)
    assert_type(fc.dclw_loss(z, z, sigma=0.5), Tensor)
    assert_type(fc.multiple_negatives_ranking_loss(z, z, directions=("query_to_doc",)), Tensor)
    assert_type(fc.distill_clip_loss(z, z, 14.0, z, z, 14.0), Tensor)
    assert_type(fc.guided_info_nce_loss(z, z, guide_query=z, guide_positive_key=z), Tensor)
    assert_type(fc.cpc_loss(z, z), tuple[Tensor, Tensor])
    assert_type(fc.correlation_loss(z, z), Tensor)
    assert_type(fc.barlow_twins_loss(z, z, 0.005), Tensor)
    assert_type(fc.contrastive_force(z, z, 0.1, normalizer=None), Tensor)
    assert_type(fc.contrastive_force_loss(z, z, reduction="mean"), Tensor)
    assert_type(fc.drift_loss(z, z), tuple[Tensor, dict[str, Tensor]])
    assert_type(fc.drift_field(z, z), Tensor)
    assert_type(fc.similarity_logsumexp(z), Tensor)
    assert_type(fc.similarity_logsumexp(z, z, return_columns=True), tuple[Tensor, Tensor])
    fc.similarity_heatmap(z, z).savefig("similarities.png")


def modules(z: Tensor, labels: Tensor) -> None:
    assert_type(fc.NTXentLoss()(z, z), Tensor)
    assert_type(fc.NTXentLoss(0.1, metrics=True)(z, z), WithMetrics)
    assert_type(fc.InfoNCELoss(learnable=True)(z, z, z), Tensor)
    assert_type(fc.ClipLoss(14.0, learnable="averaged", group="world")(z, z), Tensor)
    assert_type(fc.SigLipLoss()(z, z, 10.0, -10.0), Tensor)
    assert_type(fc.NPairsLoss()(z, z), Tensor)
    assert_type(fc.SupConLoss()(z, labels), Tensor)
    assert_type(fc.DCLLoss(metrics=True)(z, z), WithMetrics)
    assert_type(fc.DCLWLoss()(z, z), Tensor)
    assert_type(fc.MultipleNegativesRankingLoss()(z, z), Tensor)
    assert_type(fc.DistillClipLoss()(z, z, 14.0, z, z, 14.0), Tensor)
    assert_type(fc.GuidedInfoNCELoss(margin=-0.1)(z, z), Tensor)
    assert_type(fc.CPCLoss()(z, z), tuple[Tensor, Tensor])
    assert_type(fc.CorrelationLoss()(z, z), Tensor)
    assert_type(fc.BarlowTwinsLoss()(z, z), Tensor)
    assert_type(fc.ContrastiveForceLoss(reduction="mean")(z, z), Tensor)
    assert_type(fc.DriftLoss()(z, z), tuple[Tensor, dict[str, Tensor]])
    parameters: list[torch.nn.Parameter] = list(fc.NTXentLoss(learnable=True).parameters())
    torch.optim.SGD(parameters, lr=0.1)


def the_rest(z: Tensor, encoder: torch.nn.Module) -> None:
    bank = fc.MemoryBank(64, 8, wrap="around")
    bank.enqueue(z)
    assert_type(bank.negatives, Tensor)
    assert_type(bank.labels, Tensor | None)
    assert_type(len(bank), int)
    fc.cached_step([encoder, encoder], [z, z], fc.nt_xent_loss, chunk_size=4)
    fc.cached_forward(encoder, [z, z], fc.nt_xent_loss, chunk_size=4).backward()
    assert_type(fc.backends(), dict[str, str])
    fc.set_backend("panels")
    with fc.use_backend("cpu"):
        pass


def mistakes(z: Tensor) -> None:
    fc.nt_xent_loss(z, z, reduction="avg")  # type: ignore[call-overload]
    fc.nt_xent_loss(z, z, metrics=True).backward()  # type: ignore[attr-defined]
    fc.nt_xent_loss(z)  # type: ignore[call-overload]
    fc.sup_con_loss(z, z, positives="outer")  # type: ignore[call-overload]
    fc.NTXentLoss(temprature=0.1)  # type: ignore[call-overload]
    fc.MemoryBank(64, 8, wrap="circle")  # type: ignore[arg-type]
    fc.set_backend("gpu")  # type: ignore[arg-type]
