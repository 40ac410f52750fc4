"""sentence-transformers' ranking losses::

    from fused_contrastive.integrations.sentence_transformers import MultipleNegativesRankingLoss

`SparseMultipleNegativesRankingLoss` is here, too, and `CachedMultipleNegativesRankingLoss`, for
which the library encodes in mini-batches and the loss of all embeddings streams. So are the
deprecated symmetric forms of both. Every option streams: all `directions`, both
values of `partition_mode`, all of `hardness_mode`, any number of hard negatives, and
`similarity_fct` `cos_sim` or `dot_score`. So does `gather_across_devices`, with the library's
values and gradients; each pair of shards is computed once there (see docs/many_gpus.md). A scale
that has a gradient gets a share: the mean over the processes, which DistributedDataParallel takes,
is the library's. Other similarity functions, sparse tensors and a scale of several elements fall
back. So do hard negatives that are not one per query and column. As in the library, the products of
float16 and bfloat16 embeddings are float32 outside autocast.

`GISTEmbedLoss` and `CachedGISTEmbedLoss` stream, too, with every margin and option. The guide's
mask is computed on the way (see `fused_contrastive.guided_info_nce_loss`). Similarities that the
guide rounds apart by a few units in the last place count as equal. The library compares them as
they are, so that its mask of two equal texts may depend on their places.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterable

import torch
from typing_extensions import deprecated

from ..dtypes import accumulation_dtype, matrix_dtype
from ..losses._comparison import Comparison, exact_rows
from ..losses._over_ranks import over_ranks
from ..losses._reduction import merged, one_positive, reduce
from ..problem import Candidates
from ..scalars import as_scalar
from ._classes import absent
from ._common import falls_back, in_dtype_of, mismatch, number, package, world
from ._guided import Known, guided, reason_against_guide
from ._patch import patching

peer = package("sentence_transformers.sentence_transformer.losses", "sentence-transformers")
sparse = package("sentence_transformers.sparse_encoder.losses", "sentence-transformers")
util = package("sentence_transformers.util", "sentence-transformers")
embed_columns = package(
    "sentence_transformers.base.losses.merged_forward", "sentence-transformers"
).embed_columns

__all__ = [
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "GISTEmbedLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "SparseMultipleNegativesRankingLoss",
    "patch",
]

__getattr__ = absent(__name__)

COSINE = (util.cos_sim, util.pytorch_cos_sim)
SYMMETRIC = (
    "{0}SymmetricRankingLoss is deprecated as sentence-transformers' is: use {0}RankingLoss with "
    "directions=('query_to_doc', 'doc_to_query') and partition_mode='per_direction'"
)


class Batch:
    """Queries and documents ``[n, d]`` each, among those of all ranks."""

    def __init__(self, queries, documents, scale, normalize: bool, ranks):
        self.queries = exact_rows(queries, normalize)
        # The positives come first, then the hard negatives.
        self.documents = [exact_rows(x, normalize) for x in documents]
        scale = as_scalar(scale, queries)
        dtype = matrix_dtype(queries)
        self.compared = Comparison(self.queries, None, scale, dtype, ranks=ranks)
        # These are the logits of the positives, [n].
        self.positive = self.compared.scale * self.compared.dot(self.documents[0])

    def others(self, a, b, hardness: float = 0.0, columns: bool = False):
        """The log-sum-exp of the rows of a with all rows of b (None: a) of other queries.

        ``hardness`` times the similarity is added to each logit as a constant. The logit is then
        ``(scale + hardness) s``, and only the scale's part has a gradient.
        """
        compared = self.compared._replace(rows=a, columns=b)
        candidates = Candidates("not_pair", stride=max(len(self.queries), 1))
        return compared.lse(candidates, hardness=hardness, columns=columns)

    def log_sums(
        self, directions: set[str], in_batch: float, own: float
    ) -> dict[str, list[torch.Tensor]]:
        """For each direction the log-sum-exps ``[n]`` of its denominator, without the positive.

        `in_batch` and `own` are the hardness of the negatives of other queries and of the query's
        own hard negatives.
        """
        sums: dict[str, list[torch.Tensor]] = {name: [] for name in directions}
        documents, positives = self.documents, self.documents[0]
        if "doc_to_query" in directions and not in_batch:
            # One pass serves both directions.
            both = self.others(self.queries, positives, columns=True)
            sums["query_to_doc"].append(both.rows)
            sums["doc_to_query"].append(both.cols)
            documents = documents[1:]
        elif "doc_to_query" in directions:
            sums["doc_to_query"].append(self.others(positives, self.queries).rows)
        if documents:
            result = self.others(self.queries, torch.cat(documents), in_batch)
            sums["query_to_doc"].append(result.rows)
        for hard in self.documents[1:]:
            cosine = self.compared.dot(hard)
            sums["query_to_doc"].append(self.compared.scale * cosine + own * cosine.detach())
        if "query_to_query" in directions:
            sums["query_to_query"].append(self.others(self.queries, None).rows)
        if "doc_to_doc" in directions:
            other = None if len(self.documents) == 1 else torch.cat(self.documents)
            sums["doc_to_doc"].append(self.others(positives, other).rows)
        return sums


@over_ranks
def ranking_loss(
    *embeddings, scale, normalize, directions, partition_mode, hardness, group
) -> torch.Tensor:
    """The mean loss of queries, positives and hard negatives, ``[n, d]`` each."""
    batch = Batch(embeddings[0], embeddings[1:], scale, normalize, group)
    sums, positive = batch.log_sums({*directions}, *hardness), batch.positive
    if partition_mode == "joint":
        # The softmax counts the positive once for each direction that holds it. So the loss is
        # softplus(lse - pos - log count) + log count.
        count = math.log(len({"query_to_doc", "doc_to_query"} & sums.keys()))
        lse = merged([x for terms in sums.values() for x in terms])
        return reduce(one_positive(lse, positive + count) + count, "mean", group=group)
    losses = [one_positive(merged(terms), positive) for terms in sums.values()]
    return reduce(sum(losses) / len(losses), "mean", group=group)


def streamed(loss, embeddings: list[torch.Tensor]) -> torch.Tensor:
    """The loss of embeddings for which `reason_against` gave None."""
    embeddings = [x.to(accumulation_dtype(x.dtype)) for x in embeddings]
    value = ranking_loss(
        *embeddings,
        scale=number(loss.scale, embeddings[0]),
        normalize=loss.similarity_fct in COSINE,
        directions=sorted({*loss.directions}),
        partition_mode=loss.partition_mode,
        hardness=[
            loss.hardness_strength if loss.hardness_mode in (mode, "all_negatives") else 0.0
            for mode in ("in_batch_negatives", "hard_negatives")
        ],
        group=world() if loss.gather_across_devices else None,
    )
    return in_dtype_of(
        embeddings[0],
        value,
        lambda x: torch.logsumexp(loss.similarity_fct(x, x) * loss.scale, 1),
    )


def reason_against(loss, embeddings: list[torch.Tensor]) -> str | None:
    """Why a loss of these embeddings does not stream; None: it does."""
    if loss.similarity_fct not in (*COSINE, util.dot_score):
        return f"similarity_fct={getattr(loss.similarity_fct, '__name__', loss.similarity_fct)}"
    if len(embeddings) < 2:
        return "a single column of embeddings"
    reason = mismatch(*embeddings)
    if reason is None and any(x.shape != embeddings[0].shape for x in embeddings):
        reason = "columns of different lengths"
    if reason is None and number(loss.scale, embeddings[0]) is None:
        reason = f"scale={loss.scale}"
    return reason


class MultipleNegativesRankingLoss(peer.MultipleNegativesRankingLoss):
    """Works as `sentence_transformers.losses.MultipleNegativesRankingLoss` does.

    The embeddings of queries, positives and hard negatives are ``[B, D]`` each.
    """

    def compute_loss_from_embeddings(
        self, embeddings: list[torch.Tensor], labels: torch.Tensor
    ) -> torch.Tensor:
        reason = reason_against(self, embeddings)
        if reason is None:
            return streamed(self, embeddings)
        falls_back(f"sentence_transformers.{type(self).__name__}", reason)
        return super().compute_loss_from_embeddings(embeddings, labels)


class SparseMultipleNegativesRankingLoss(
    sparse.SparseMultipleNegativesRankingLoss, MultipleNegativesRankingLoss
):
    """Works as `sentence_transformers.sparse_encoder.losses.SparseMultipleNegativesRankingLoss`.

    The embeddings are dense tensors ``[B, V]`` over the vocabulary, as they are in training.
    """


class CachedMultipleNegativesRankingLoss(peer.CachedMultipleNegativesRankingLoss):
    """Works as `sentence_transformers.losses.CachedMultipleNegativesRankingLoss` does.

    The model still encodes `mini_batch_size` texts at a time, twice. The loss of all embeddings is
    computed at once, without a matrix of scores.
    """

    def calculate_loss(
        self,
        reps: list[list[torch.Tensor]],
        labels: torch.Tensor | None = None,
        *,
        with_backward: bool = False,
    ) -> torch.Tensor:
        embeddings = [torch.cat(column) for column in reps]
        reason = reason_against(self, embeddings)
        if reason is not None:
            falls_back(f"sentence_transformers.{type(self).__name__}", reason)
            return super().calculate_loss(reps, labels, with_backward=with_backward)
        loss = streamed(self, embeddings)
        if not with_backward:
            return loss
        loss.backward()
        return loss.detach()


class GISTEmbedLoss(peer.GISTEmbedLoss):
    """Works as `sentence_transformers.losses.GISTEmbedLoss` does.

    The guide encodes as in the library. Its mask of false negatives is never stored.
    """

    def forward(
        self, sentence_features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor
    ) -> torch.Tensor:
        features = list(sentence_features)
        # The guide writes into the features it is given.
        of_guide = [dict(x) for x in features]
        embeddings = embed_columns(self.model, features)
        with torch.no_grad():
            if self.must_retokenize:
                of_guide = [self.retokenized(x) for x in features]
            guides = embed_columns(self.guide, of_guide)
        return self.compute_loss_from_embeddings(embeddings, guides)

    def retokenized(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The features of the same texts as the guide's tokenizer makes them."""
        input_ids = features["input_ids"]
        if "cu_seq_lens_q" in features:
            input_ids, ends = input_ids[0].tolist(), features["cu_seq_lens_q"].tolist()
            input_ids = [input_ids[i:j] for i, j in itertools.pairwise(ends)]
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        return util.batch_to_device(self.guide.preprocess(texts), self.guide.device)

    def compute_loss_from_embeddings(
        self, embeddings: list[torch.Tensor], guides: list[torch.Tensor]
    ) -> torch.Tensor:
        """The loss of the model's and the guide's embeddings of the same columns."""
        if len(embeddings) in (2, 3):
            reason = reason_against_guide(self, embeddings, guides)
            if reason is None:
                return guided(self, embeddings, guides)
            falls_back(f"sentence_transformers.{type(self).__name__}", reason)
        # The package's own code takes its embeddings from models alone.
        twin = copy.copy(self)
        twin._modules = {**self._modules, "model": Known(embeddings), "guide": Known(guides)}
        twin.must_retokenize = False
        return peer.GISTEmbedLoss.forward(twin, [{} for _ in embeddings], None)


class CachedGISTEmbedLoss(peer.CachedGISTEmbedLoss):
    """Works as `sentence_transformers.losses.CachedGISTEmbedLoss` does.

    Model and guide still encode `mini_batch_size` texts at a time. The loss of all embeddings is
    computed at once. Neither a matrix of scores nor the guide's mask is stored.
    """

    def calculate_loss(
        self,
        reps: list[list[torch.Tensor]],
        reps_guided: list[list[torch.Tensor]],
        *,
        with_backward: bool = False,
    ) -> torch.Tensor:
        reason = "reps and reps_guided of different lengths"
        if len(reps) == len(reps_guided):
            embeddings, guides = (
                [torch.cat(column) for column in columns] for columns in (reps, reps_guided)
            )
            reason = reason_against_guide(self, embeddings, guides)
        if reason is not None:
            falls_back(f"sentence_transformers.{type(self).__name__}", reason)
            return super().calculate_loss(reps, reps_guided, with_backward=with_backward)
        loss = guided(self, embeddings, guides)
        if not with_backward:
            return loss
        loss.backward()
        return loss.detach()


with warnings.catch_warnings():
    # Deriving from a deprecated class warns.
    warnings.simplefilter("ignore", DeprecationWarning)

    @deprecated(SYMMETRIC.format("MultipleNegatives"))
    class MultipleNegativesSymmetricRankingLoss(
        peer.MultipleNegativesSymmetricRankingLoss, MultipleNegativesRankingLoss
    ):
        """Works as sentence-transformers' own: it is the mean of both directions."""

    @deprecated(SYMMETRIC.format("CachedMultipleNegatives"))
    class CachedMultipleNegativesSymmetricRankingLoss(
        peer.CachedMultipleNegativesSymmetricRankingLoss, CachedMultipleNegativesRankingLoss
    ):
        """Works as sentence-transformers' own: it is the mean of both directions."""


patch = patching(
    __name__,
    {
        peer.GISTEmbedLoss: GISTEmbedLoss,
        peer.CachedGISTEmbedLoss: CachedGISTEmbedLoss,
        peer.MultipleNegativesRankingLoss: MultipleNegativesRankingLoss,
        peer.MultipleNegativesSymmetricRankingLoss: MultipleNegativesSymmetricRankingLoss,
        peer.CachedMultipleNegativesRankingLoss: CachedMultipleNegativesRankingLoss,
        peer.CachedMultipleNegativesSymmetricRankingLoss: (
            CachedMultipleNegativesSymmetricRankingLoss
        ),
        sparse.SparseMultipleNegativesRankingLoss: SparseMultipleNegativesRankingLoss,
    },
)
