"""The losses: each a few lines over functions.similarity or sigmoid.sigmoid_sum.

Common arguments: ``temperature`` or ``logit_scale`` a number or a 0-d tensor, whose value is never read and which then gets a gradient;
``reduction`` "none", "mean" or "sum"; ``metrics=True`` returns ``(loss, {"accuracy", "positive_similarity"})``, detached, from the same
passes (accuracy: the share of rows whose positive is at least their largest other candidate; positive_similarity: the mean cosine, or the
mean logit where nothing is normalised); ``backend`` a name of `backends()`, or None. Losses are float32 (float64 for float64 inputs).
Wrong shapes, dtypes, devices or values raise ValueError or TypeError naming the argument.

Options of the losses with one positive (the ranking loss: `keys`, `weights` and `hardness`; SigLIP, the decoupled losses and CPC: `keys` and
`weights`; distillation and SupCon: `weights`), None or 0 by default; together, or each alone, they keep O(N D) memory and one loss per row:

``keys``: integers; a column whose key equals the row's is no negative of it (a duplicate, another sample of the same class); its positive
    remains the positive.
``weights``: of the rows; "none" returns ``w l``, "sum" ``Σ w l``, "mean" ``Σ w l / Σ w``, and the metrics are weighted alike. A weight of 0 leaves a
    row out even where its loss is not finite.
``bias``: added to the logits of a column, wherever it is a candidate, as the positive too: ``-log q`` corrects for candidates sampled with
    probability q (Yi et al. 2019, "Sampling-bias-corrected neural modeling"); ``-inf`` removes padding (rows whose positive it
    removes have an infinite loss: give them weight 0).
``label_smoothing``: as F.cross_entropy's, uniform over the row's candidates, the positive among them.
``margin``: subtracted from the positive's similarity before it is scaled (additive margin softmax: Wang et al. 2018, arXiv:1801.05599).
``hardness``: each negative's logit gets ``hardness * stopgrad(similarity)``, that is, the negative the weight ``exp(hardness * similarity)`` (Lan
    et al. 2025, arXiv:2503.04812, eq. 5; the weights of Robinson et al. 2021, arXiv:2010.04592, not normalised). Has first derivatives only.
``tau_plus``: the prior probability that a negative is of the positive's class; the sum over the negatives becomes the debiased estimate of
    Chuang et al. 2020 (arXiv:2007.00224, sec. 4), whose lower bound takes similarities to be cosines. Not together with `hardness`.

The accuracy is that of the logits with their biases, without `margin` and `hardness` (which then takes a second forward pass); the positive
similarity that of the plain ones.
"""

from .clip import clip_loss
from .correlation import barlow_twins_loss, correlation_loss
from .cpc import cpc_loss
from .dcl import dcl_loss, dclw_loss
from .distill_clip import distill_clip_loss
from .info_nce import info_nce_loss
from .n_pairs import n_pairs_loss
from .nt_xent import nt_xent_loss
from .ranking import multiple_negatives_ranking_loss
from .siglip import siglip_loss
from .sup_con import sup_con_loss

__all__ = [
    "barlow_twins_loss",
    "clip_loss",
    "correlation_loss",
    "cpc_loss",
    "dcl_loss",
    "dclw_loss",
    "distill_clip_loss",
    "info_nce_loss",
    "multiple_negatives_ranking_loss",
    "n_pairs_loss",
    "nt_xent_loss",
    "siglip_loss",
    "sup_con_loss",
]
