"""The losses: each is a few lines over the similarity or the sigmoid family.

One file is one loss: the public function with its checks, what it does, and its module. This page
describes what the losses share.

Common arguments
----------------
``temperature`` or ``logit_scale``: a number or a 0-d tensor. The value of a tensor is never read,
    and it gets a gradient.
``reduction``: "none", "mean" or "sum".
``metrics=True``: the function returns ``(loss, {"accuracy", "positive_similarity"})``. Both are
    detached, and come from the same passes. The accuracy is the share of rows whose positive is at
    least their largest other candidate. The positive similarity is the mean cosine, or the mean
    logit where nothing is normalised.
``backend``: a name of `fused_contrastive.backends()`, or None.

Losses are float32 (float64 for float64 inputs). Wrong shapes, dtypes, devices or values raise
ValueError or TypeError that names the argument.

Options
-------
These are options of the losses with one positive, and None or 0 by default. Alone or together they
keep O(N D) memory and one loss per row. The ranking loss has `keys`, `weights` and `hardness`;
SigLIP, the decoupled losses and CPC have `keys` and `weights`; distillation and SupCon have
`weights`.

``keys``: integers. A column whose key equals the row's is no negative of it: it is a duplicate, or
    another sample of the same class. The row's positive remains its positive.
``weights``: one for each row. "none" returns ``w l``, "sum" ``Σ w l`` and "mean" ``Σ w l / Σ w``;
    the metrics are weighted alike. A weight of 0 leaves a row out even where its loss is not
    finite.
``bias``: added to the logits of a column wherever it is a candidate, and also where it is the
    positive. ``-log q`` corrects for candidates sampled with probability q (Yi et al. 2019,
    "Sampling-bias-corrected neural modeling"). ``-inf`` removes padding; rows whose positive it
    removes have an infinite loss, so give them weight 0.
``label_smoothing``: as F.cross_entropy's, uniform over the row's candidates, the positive among
    them.
``margin``: subtracted from the positive's similarity before it is scaled (additive margin softmax:
    Wang et al. 2018, arXiv:1801.05599).
``hardness``: each negative's logit gets ``hardness * stopgrad(similarity)``. In other words the
    negative has the weight ``exp(hardness * similarity)`` (Lan et al. 2025, arXiv:2503.04812, eq.
    5). These are the weights of Robinson et al. 2021 (arXiv:2010.04592), not normalised. It has
    first derivatives only.
``tau_plus``: the prior probability that a negative is of the positive's class. The sum over the
    negatives becomes the debiased estimate of Chuang et al. 2020 (arXiv:2007.00224, sec. 4), whose
    lower bound takes similarities to be cosines. It cannot be given together with `hardness`.

The accuracy is that of the logits with their biases, but without `margin` and `hardness`; with
`hardness` this takes a second forward pass. The positive similarity is that of the plain logits.
"""
