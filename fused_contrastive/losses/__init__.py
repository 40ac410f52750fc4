"""The losses: each is a few lines over the similarity or the sigmoid family.

One file is one loss: the public function with its checks, what it does, and its module. This page
describes what the losses share.

Common arguments
----------------
``temperature`` or ``logit_scale``: a number or a 0-d tensor. The value of a tensor is never read,
    and it gets a gradient.
``reduction``: "none", "mean" or "sum".
``metrics=True``: the function returns the loss and a dictionary of ``"accuracy"``,
    ``"positive_similarity"`` and ``"logsumexp"``. All are detached, and come from the same passes.
    The accuracy is the share of rows whose positive is at
    least their largest other candidate. The positive similarity is the mean cosine, or the mean
    logit where nothing is normalised. The log-sum-exp is ``log sum_j exp s_ij`` over the negatives
    j of each row, in the shape of ``reduction="none"``. The row's positives are not in the sum. Two
    directions give ``[2, N]``. Its logits have biases and `hardness`; `tau_plus`, margin and
    smoothing do not change it. It is -inf where a row has no negatives, and SigLIP has none.
    SogCLR's moving averages are built on it in examples/sogclr.py.
``group``, ``strategy``: the ranks of a process group that share a batch; see "Several ranks".
``backend``: a name of `fused_contrastive.backends()`, or None.

Losses are float32 (float64 for float64 inputs). Wrong shapes, dtypes, devices or values raise
ValueError or TypeError that names the argument.

Several ranks
-------------
With a ``group`` the loss is that of the global batch, the rows of all ranks of the group. The group
is a torch.distributed process group, a one-dimensional DeviceMesh, or "world" for all ranks. Each
rank passes its own rows and what belongs to them: labels, keys, weights, biases and hard negatives.
The ranks may have different numbers of rows, or none.

Let N be the rows of all ranks, and W their number. A rank returns ``W / N`` times the sum of the
losses of its own rows, and with "sum" W times that sum. The mean over the ranks is then the loss of
the global batch. A rank's inputs receive the gradient of the sum of what all ranks return. So the
mean of the parameters' gradients over the ranks, which DistributedDataParallel and FSDP take, is
that of the global loss. A scalar that all ranks have (a temperature, scale or bias) receives a
share on each rank, and the mean of these is right, too. "none" returns the losses of the rank's own
rows. Metrics are those of the global batch, and ``"loss"`` among them is the global loss. Only
``"logsumexp"`` is of the rank's own rows, each with the negatives of all ranks.

A learnable temperature belongs inside the module that DistributedDataParallel wraps. A module that
is not wrapped takes ``learnable="averaged"`` with its group, and averages the gradient itself.

``strategy="gather"`` collects the columns of all ranks first. ``"ring"`` passes them around, so
that a rank never holds more than a part of another one's rows. ``"auto"`` gathers small batches.
Both compute each pair of rows once, on one rank. Options must be the same on all ranks. Ranks that
disagree, or of which one raised an error, raise an error that says so. Derivatives are of first
order, and ``backend="eager"`` knows no group.

Without a group a loss is that of the rank's own batch. Where several ranks are running this warns
once, unless ``group=None`` says that it is meant.

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
