"""The dense form of several directions in one softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._dense import masked_logsumexp, maximum
from ._reduction import reduce


def multiple_negatives_ranking_loss(
    query,
    positive_key,
    negative_keys=None,
    temperature=0.05,
    *,
    directions=("query_to_doc",),
    partition="joint",
    normalize=True,
    keys=None,
    weights=None,
    hardness=0.0,
    hardness_mode="all_negatives",
    reduction="mean",
    metrics=False,
):
    """The mean over the softmaxes of ``logsumexp(candidates) - positive logit``.

    This is the loss of sentence-transformers. query and positive_key are ``[N, D]``, and
    negative_keys are ``[N, H, D]``.
    """
    N = len(query)
    docs = positive_key
    if negative_keys is not None:
        docs = torch.cat([positive_key, *negative_keys.unbind(1)])
    if normalize:
        query, positive_key, docs = (F.normalize(x, dim=1) for x in (query, positive_key, docs))
    keys = torch.arange(N, device=query.device) if keys is None else keys
    times = len(docs) // max(N, 1)
    # This is where rows and documents have equal keys. The first N columns are also those of
    # queries.
    same = keys.unsqueeze(1) == keys.repeat(times)
    mine = torch.eye(N, dtype=torch.bool, device=query.device)
    positive = F.pad(mine, (0, len(docs) - N))
    own = mine.repeat(1, times) & ~positive
    similarities = query @ docs.T
    logits = {"query_to_doc": similarities / temperature}
    excluded = {"query_to_doc": same & ~own & ~positive}
    if "query_to_query" in directions:
        logits["query_to_query"] = query @ query.T / temperature
        excluded["query_to_query"] = same[:, :N]
    if "doc_to_query" in directions:
        logits["doc_to_query"] = positive_key @ query.T / temperature
        excluded["doc_to_query"] = same[:, :N] & ~mine
    if "doc_to_doc" in directions:
        logits["doc_to_doc"] = positive_key @ docs.T / temperature
        excluded["doc_to_doc"] = same
    logits = {name: s.masked_fill(excluded[name], float("-inf")) for name, s in logits.items()}
    plain, pos = dict(logits), logits["query_to_doc"].diagonal()
    if hardness:
        penalised = {
            "all_negatives": ~positive,
            "in_batch_negatives": ~own & ~positive,
            "hard_negatives": own,
        }
        penalty = hardness * similarities.detach() * penalised[hardness_mode]
        logits["query_to_doc"] = logits["query_to_doc"] + penalty
    softmaxes = list(logits.values())
    if partition != "per_direction":
        softmaxes = [torch.cat(softmaxes, 1)]
    loss = reduce(sum(s.logsumexp(1) - pos for s in softmaxes) / len(softmaxes), reduction, weights)
    if not metrics:
        return loss
    with torch.no_grad():
        others, negatives = (
            [
                s.masked_fill(mine if s.shape[1] == N else positive, float("-inf"))
                for s in those.values()
            ]
            for those in (plain, logits)
        )
        if partition != "per_direction":
            others, negatives = [torch.cat(others, 1)], [torch.cat(negatives, 1)]
        shares = [reduce((pos >= maximum(s, 1)).to(loss.dtype), "mean", weights) for s in others]
        mean = reduce(similarities.diagonal() if normalize else pos, "mean", weights)
        lse = torch.stack([masked_logsumexp(s, 1) for s in negatives])
    return loss, {
        "accuracy": sum(shares) / len(shares),
        "positive_similarity": mean,
        "logsumexp": lse[0] if len(lse) == 1 else lse,
    }
