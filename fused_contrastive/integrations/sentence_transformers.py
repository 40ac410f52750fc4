"""sentence-transformers: ``from fused_contrastive.integrations.sentence_transformers import MultipleNegativesRankingLoss``, and the deprecated
`MultipleNegativesSymmetricRankingLoss`.

Every option streams: all `directions`, both values of `partition_mode`, all of `hardness_mode`, any number of hard negatives,
`gather_across_devices` (by the library's own gather, and so with its gradients), and `similarity_fct` `cos_sim` or `dot_score`. Other similarity
functions, sparse embeddings, a scale of several elements and hard negatives that are not one per query and column fall back. As in the library
the products of float16 and bfloat16 embeddings are float32 outside autocast.
"""

from __future__ import annotations

import math
import warnings

import torch
from typing_extensions import deprecated

from ..dtypes import accumulation_dtype, matrix_dtype
from ..losses._cross_entropy import negatives
from ..losses._reduction import exact_rows, one_positive
from ..reference._dense import masked_logsumexp
from ..scalars import as_scalar
from ._common import falls_back, in_dtype_of, mismatch, number, package

peer = package("sentence_transformers.sentence_transformer.losses", "sentence-transformers")
util = package("sentence_transformers.util", "sentence-transformers")

__all__ = ["MultipleNegativesRankingLoss", "MultipleNegativesSymmetricRankingLoss"]

COSINE = (util.cos_sim, util.pytorch_cos_sim)


class Batch:
    """Queries and documents (positives, then hard negatives) of all processes ``[m, d]`` each, of which `rows` are this process's."""

    def __init__(self, queries, documents, rows: slice, scale, normalize: bool):
        self.dtype = matrix_dtype(queries)
        self.queries = exact_rows(queries, normalize)
        self.documents = [exact_rows(x, normalize) for x in documents]
        self.rows, self.local = rows, rows.stop - rows.start == len(queries)
        self.own_queries, self.own_positives = self.queries[rows], self.documents[0][rows]
        self.scale = as_scalar(scale, queries)
        self.positive = self.scale * (self.own_queries * self.own_positives).sum(1)

    def others(self, a, b, hardness: float = 0.0, columns: bool = False):
        """Log-sum-exp of the logits of the rows of a with all rows of b that belong to other queries, to each of which ``hardness`` times the
        similarity is added as a constant: the logit is ``(scale + hardness) s``, of whose gradient the scale's part flows."""
        return negatives(
            a, b, self.scale, hardness, kind="not_pair", offset=self.rows.start, stride=max(len(self.queries), 1),
            columns=columns, dtype=self.dtype,
        )  # fmt: skip

    def log_sums(
        self, directions: set[str], in_batch: float, own: float
    ) -> dict[str, list[torch.Tensor]]:
        """For each direction the log-sum-exps ``[n]`` that make up its denominator, less the positive. `in_batch` and `own` are the hardness
        of the negatives of other queries and of the query's own hard negatives."""
        sums: dict[str, list[torch.Tensor]] = {name: [] for name in directions}
        documents = self.documents
        if (
            "doc_to_query" in directions and self.local and not in_batch
        ):  # both directions in one pass
            both = self.others(self.own_queries, documents[0], columns=True)
            sums["query_to_doc"].append(both.rows)
            sums["doc_to_query"].append(both.cols)
            documents = documents[1:]
        elif "doc_to_query" in directions:
            sums["doc_to_query"].append(self.others(self.own_positives, self.queries).rows)
        if documents:
            sums["query_to_doc"].append(
                self.others(self.own_queries, torch.cat(documents), in_batch).rows
            )
        for hard in self.documents[1:]:
            cosine = (self.own_queries * hard[self.rows]).sum(1)
            sums["query_to_doc"].append(self.scale * cosine + own * cosine.detach())
        if "query_to_query" in directions:
            other = None if self.local else self.queries
            sums["query_to_query"].append(self.others(self.own_queries, other).rows)
        if "doc_to_doc" in directions:
            other = None if self.local and len(self.documents) == 1 else torch.cat(self.documents)
            sums["doc_to_doc"].append(self.others(self.own_positives, other).rows)
        return sums


def together(log_sums: list[torch.Tensor]) -> torch.Tensor:
    return log_sums[0] if len(log_sums) == 1 else masked_logsumexp(torch.stack(log_sums), 0)


class MultipleNegativesRankingLoss(peer.MultipleNegativesRankingLoss):
    """As `sentence_transformers.losses.MultipleNegativesRankingLoss`: ``[B, D]`` embeddings of queries, positives and hard negatives."""

    def compute_loss_from_embeddings(
        self, embeddings: list[torch.Tensor], labels: torch.Tensor
    ) -> torch.Tensor:
        reason = self._reason(embeddings)
        if reason is not None:
            falls_back("sentence_transformers.MultipleNegativesRankingLoss", reason)
            return super().compute_loss_from_embeddings(embeddings, labels)
        size, start = len(embeddings[0]), 0
        embeddings = [x.to(accumulation_dtype(x.dtype)) for x in embeddings]
        if self.gather_across_devices:
            embeddings = [util.all_gather_with_grad(x) for x in embeddings]
            start = util.get_rank() * size
        scale = number(self.scale, embeddings[0])
        rows = slice(start, start + size)
        batch = Batch(embeddings[0], embeddings[1:], rows, scale, self.similarity_fct in COSINE)
        in_batch, own = (
            self.hardness_strength if self.hardness_mode in (mode, "all_negatives") else 0.0
            for mode in ("in_batch_negatives", "hard_negatives")
        )
        sums, positive = batch.log_sums(set(self.directions), in_batch, own), batch.positive
        if self.partition_mode == "joint":
            # a softmax that counts the positive once per direction that holds it: softplus(lse - pos - log count) + log count
            count = math.log(len({"query_to_doc", "doc_to_query"} & sums.keys()))
            loss = (
                one_positive(
                    together([x for terms in sums.values() for x in terms]), positive + count
                )
                + count
            )
        else:
            loss = sum(one_positive(together(terms), positive) for terms in sums.values()) / len(
                sums
            )
        return in_dtype_of(
            embeddings[0],
            loss.mean(),
            lambda x: torch.logsumexp(self.similarity_fct(x, x) * self.scale, 1),
        )

    def _reason(self, embeddings) -> str | None:
        if self.similarity_fct not in (*COSINE, util.dot_score):
            return f"similarity_fct={getattr(self.similarity_fct, '__name__', self.similarity_fct)}"
        if len(embeddings) < 2:
            return "a single column of embeddings"
        reason = mismatch(*embeddings)
        if reason is None and any(x.shape != embeddings[0].shape for x in embeddings):
            reason = "columns of different lengths"
        if reason is None and number(self.scale, embeddings[0]) is None:
            reason = f"scale={self.scale}"
        return reason


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of deriving from a deprecated class

    @deprecated("MultipleNegativesSymmetricRankingLoss is deprecated as sentence-transformers' is: use MultipleNegativesRankingLoss with "
                "directions=('query_to_doc', 'doc_to_query') and partition_mode='per_direction'")  # fmt: skip
    class MultipleNegativesSymmetricRankingLoss(
        peer.MultipleNegativesSymmetricRankingLoss, MultipleNegativesRankingLoss
    ):
        """As `sentence_transformers.losses.MultipleNegativesSymmetricRankingLoss`: the mean of both directions."""
