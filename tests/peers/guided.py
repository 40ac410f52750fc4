"""sentence-transformers' losses with a guide, ours and the package's, on embeddings."""

from __future__ import annotations

from sentence_transformers.sentence_transformer import losses as peer
from torch import nn
from transformers import PreTrainedTokenizerBase

from fused_contrastive.integrations import sentence_transformers as ours

NAME, CACHED = "GISTEmbedLoss", "CachedGISTEmbedLoss"


class Tokenizer(PreTrainedTokenizerBase):
    def __init__(self):
        pass

    def __getattr__(self, name):
        raise AttributeError(name)

    def get_vocab(self):
        return {}


class Columns(nn.Module):
    """A model that returns the embeddings it is given as features."""

    tokenizer, max_seq_length = Tokenizer(), 8

    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, features):
        return {"sentence_embedding": features[self.key]}

    def get_embedding_dimension(self):
        return 8

    def __getitem__(self, index):
        return nn.Identity()


def pair(name=NAME, **options):
    """Returns ours and the package's as functions of the columns of the model and of the guide."""

    def call(module):
        loss = getattr(module, name)(Columns("own"), Columns("guide"), **options)

        def value(*columns, guide=None):
            guide = columns[: len(columns) // 2] if guide is None else guide
            own = columns[len(columns) - len(guide) :]
            if name == CACHED:
                reps, reps_guided = ([x.split(3) for x in xs] for xs in (own, guide))
                return loss.calculate_loss(reps, reps_guided)
            features = zip(own, guide, strict=True)
            return loss([{"own": x, "guide": y} for x, y in features], None)

        value.loss = loss
        return value

    return [call(ours), call(peer)]
