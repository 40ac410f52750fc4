"""sentence-transformers' losses with a guide, from the embeddings of the model and of the guide."""

from __future__ import annotations

import torch
from torch import nn

from ..dtypes import accumulation_dtype
from ..losses._comparison import as_read
from ..losses.guided_info_nce import Guide, guided_loss
from ..scalars import inverse_scale
from ._common import in_dtype_of, mismatch, number, package

util = package("sentence_transformers.util", "sentence-transformers")


def cosine_rows(x: torch.Tensor, eps: float) -> torch.Tensor:
    """The rows of x divided by their norms, in the accumulation dtype, as CosineSimilarity does."""
    x = x.to(accumulation_dtype(x.dtype))
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clone()
    with torch.no_grad():
        # The gradient of a norm below the bound is that of the norm.
        norm.clamp_min_(eps)
    return x / norm


def guided(loss, embeddings: list[torch.Tensor], guides: list[torch.Tensor]) -> torch.Tensor:
    """The loss of embeddings and guide's embeddings for which `reason_against_guide` gave None."""
    first, eps = embeddings[0], loss.similarity_fct.eps
    rows = [as_read(cosine_rows(x, eps), x.dtype) for x in embeddings]
    with torch.no_grad():
        of_guide = [cosine_rows(x, eps).to(rows[0].dtype) for x in guides]
    offset = 0
    if loss.gather_across_devices:
        # The library gathers all columns but the anchors.
        rows[1:], of_guide[1:] = (
            [util.all_gather_with_grad(x) for x in columns[1:]] for columns in (rows, of_guide)
        )
        offset = util.get_rank() * len(first)
    guide = Guide(
        of_guide[0],
        torch.cat(of_guide[1:]),
        loss.margin,
        loss.margin_strategy,
        loss.contrast_anchors,
        loss.contrast_positives,
        self_pairs=True,
    )
    value = guided_loss(
        rows[0],
        torch.cat(rows[1:]),
        inverse_scale(number(loss.temperature, first, divisor=True), first),
        guide,
        first.dtype,
        positives=len(rows[1]),
        offset=offset,
    )
    return in_dtype_of(
        first,
        value,
        lambda x: loss.cross_entropy_loss(
            loss.sim_matrix(x, x) / loss.temperature, torch.zeros(1, dtype=torch.long).to(x.device)
        ),
    )


def reason_against_guide(loss, embeddings, guides) -> str | None:
    """Why a loss of these embeddings and guide's embeddings does not stream; None: it does."""
    if type(loss.similarity_fct) is not nn.CosineSimilarity or loss.similarity_fct.dim != -1:
        return f"similarity_fct={loss.similarity_fct}"
    entropy = loss.cross_entropy_loss
    plain = entropy.weight is None and not entropy.label_smoothing and entropy.reduction == "mean"
    if type(entropy) is not nn.CrossEntropyLoss or not plain:
        return f"cross_entropy_loss={entropy}"
    if len(embeddings) < 2:
        return "a single column of embeddings"
    reason = mismatch(*embeddings)
    if reason is not None:
        return reason
    reason = mismatch(*(x.to(embeddings[0]) for x in guides))
    if reason is not None:
        return f"a guide with {reason}"
    if any(x.shape[0] != embeddings[0].shape[0] for x in (*embeddings, *guides)):
        return "columns of different lengths"
    if number(loss.temperature, embeddings[0], divisor=True) is None:
        return f"temperature={loss.temperature}"
    if isinstance(loss.margin, torch.Tensor) or number(loss.margin, embeddings[0]) is None:
        return f"margin={loss.margin}"
    return None


class Known(nn.Module):
    """Stands for a model, whose embeddings are known already."""

    def __init__(self, embeddings: list[torch.Tensor]):
        super().__init__()
        self.embeddings = iter(embeddings)

    def forward(self, features):
        return {"sentence_embedding": next(self.embeddings)}
