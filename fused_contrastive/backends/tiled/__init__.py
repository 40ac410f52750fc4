"""The host programs that the two GPU backends share, CUDA and Triton.

`similarity.py` and `sigmoid.py` hold one forward and one backward pass per family. They allocate
every output, decide what is computed, and ask a module of kernels to compute it. `operands.py`
holds what both families hand to the kernels and how weighted sums become gradients. `plan.py`
divides a call into super-tiles and panels. The force family has no program here: its two GPU
backends use different algorithms.

A module of kernels for the similarity family has

    HALF_RANGE                                      how large float16 weights may get
    prepare(problem, bias, prepared) -> bound       normalised, rounded rows; what bounds a logit
    pair_reduce(operands, bound, problem, wanted) -> (slots, super_rows)
    finish_forward(slots, super_rows, operands, problem, found)
    fits_fused_rows(x)                              whether fused_rows serves rows like these
    fused_rows(operands) -> (slots, partial)        one pass for the weighted mean
    finish_weighted(slots, partial, found)
    terms(operands, upstream, saved, terms)         fills the terms of the gradient's weights
    pair_weight(operands, terms, panel, mirror)     fills a panel of weights
    finish_backward(gradient, side, terms, scale, need_x, need_scale) -> (dx, radial)

and one for the sigmoid family has HALF_RANGE, prepare, finish_backward and

    sigmoid_reduce(operands, problem, extrema) -> slots
    sigmoid_finish(slots, operands, problem, found)
    sigmoid_terms(g_rows, problem, pos, terms)
    sigmoid_weight(operands, terms, sign, panel, need_sums) -> row sums by tile

Such a module decides what differs between the two languages. These are the tiles, the precision of
products, the limit of `fused_rows` and the dtype of partial sums. It also decides how an absent
tensor is passed to a kernel.
"""
