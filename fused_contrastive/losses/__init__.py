"""The losses: each a few lines over functions.similarity.

Common arguments: ``temperature`` or ``logit_scale`` a number or a 0-d tensor, whose value is never read and which then gets a gradient;
``reduction`` "none", "mean" or "sum"; ``metrics=True`` returns ``(loss, {"accuracy", "positive_similarity"})``, detached, from the same
passes (accuracy: the share of rows whose positive is at least their largest other candidate; positive_similarity: the mean cosine, or the
mean logit where nothing is normalised); ``backend`` a name of `backends()`, or None. Losses are float32 (float64 for float64 inputs).
Wrong shapes, dtypes, devices or values raise ValueError or TypeError naming the argument.
"""

from .clip import clip_loss
from .cpc import cpc_loss
from .info_nce import info_nce_loss
from .n_pairs import n_pairs_loss
from .nt_xent import nt_xent_loss

__all__ = ["clip_loss", "cpc_loss", "info_nce_loss", "n_pairs_loss", "nt_xent_loss"]
