"""The tests must notice these errors. tests/mutations.py makes them one by one."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """A mutation is one error, with the tests that should fail by it."""

    meaning: str
    # This is a file, or a folder of which exactly one file holds the text.
    place: str
    # The text occurs exactly once there.
    text: str
    instead: str
    # These are arguments of pytest.
    tests: str


PANELS = "fused_contrastive/backends/panels"
GRADIENTS = "tests/losses/test_gradcheck.py"
ACCURACY = "tests/losses/test_accuracy.py"
FORCE = "tests/losses/test_force.py"
CUDA = "tests/backends/test_cuda_similarity.py"
TRITON = "tests/backends/test_triton_similarity.py"

MUTATIONS = (
    # These are errors of the similarity family on panels.
    Mutation(
        "The gradient of the rows misses the factor 1/2 where both directions are averaged.",
        PANELS,
        "c = g * torch.sigmoid(excess(row_lse, pos)) / 2 +",
        "c = g * torch.sigmoid(excess(row_lse, pos)) +",
        f"{GRADIENTS} -k 'test_loss and panels and clip'",
    ),
    Mutation(
        "With one set every pair counts twice in the gradient of the scale.",
        f"{PANELS}/similarity.py",
        "(0.5 if one_set else 1.0)",
        "1.0",
        f"{GRADIENTS} -k 'test_loss and panels and nt_xent'",
    ),
    Mutation(
        "The gradient of the bias misses the positive of each row.",
        PANELS,
        "dbias.index_add_(1, p, g_pos)",
        "pass",
        "tests/backends/test_panels.py",
    ),
    Mutation(
        "The gradient of the bias keeps the last panel's sums only.",
        PANELS,
        "dbias[g] += w.sum(1)",
        "dbias[g] = w.sum(1)",
        f"{GRADIENTS} -k 'test_primitive_across_tiles and panels'",
    ),
    Mutation(
        "With one set the gradient of the columns behind a panel is dropped.",
        PANELS,
        "G_a[g, i.stop :] += product(later, x[g, i])",
        "pass",
        f"{GRADIENTS} -k 'test_loss_across_tiles and panels and nt_xent'",
    ),
    Mutation(
        "With one set the sums of the columns behind a panel are dropped.",
        PANELS,
        "row_sums.add((g, slice(i.stop, N)), s[:, :, i.stop - i.start :], 1)",
        "pass",
        "tests/losses/test_scale.py -k 'test_panels_of_any_size and nt_xent'",
    ),
    Mutation(
        "The positive is one column too far.",
        PANELS,
        "+ problem.positive) % N",
        "+ problem.positive + 1) % N",
        f"{ACCURACY} -k 'test_loss and panels and nt_xent'",
    ),
    Mutation(
        "The gradient through the normalisation has the wrong sign.",
        PANELS,
        "(gradient - radial * unit) * inv",
        "(gradient + radial * unit) * inv",
        f"{GRADIENTS} -k 'test_loss and panels and nt_xent'",
    ),
    Mutation(
        "The weights of the columns are taken with the log-sum-exp of the rows.",
        PANELS,
        "s.sub_(cols[g, :, j])",
        "s.sub_(rows[g, i])",
        f"{GRADIENTS} -k 'test_loss and panels and clip'",
    ),
    Mutation(
        "The excluded diagonals move the wrong way from panel to panel.",
        "fused_contrastive/problem.py",
        "offset += i.start - j.start",
        "offset -= i.start - j.start",
        "tests/losses/test_scale.py -k 'test_panels_of_any_size and (clip or nt_xent)'",
    ),
    Mutation(
        "Rows are normalised in their own precision instead of float32.",
        PANELS,
        "x = x.to(accumulation_dtype(dtype))\n    inv",
        "x = x.to(dtype)\n    inv",
        "tests/pytorch/test_pytorch.py -k 'test_opcheck and panels'",
    ),
    Mutation(
        "Sums of exponentials are not rescaled when a larger logit arrives.",
        PANELS,
        "self.total[place] * torch.exp(old - shift)",
        "self.total[place]",
        "tests/losses/test_scale.py -k test_panels_of_any_size",
    ),
    # These are errors of the other families on panels.
    Mutation(
        "The weights of the sigmoid family forget the upstream gradient.",
        PANELS,
        "s.sigmoid_().mul_(c[g, i].unsqueeze(2))",
        "s.sigmoid_()",
        f"{GRADIENTS} -k 'test_loss and panels and siglip'",
    ),
    Mutation(
        "The second derivative forgets the tangents of the columns' weights.",
        PANELS,
        "w, t_w = w.add_(more), t_w.add_(t_more)",
        "w = w.add_(more)",
        "tests/pytorch/test_second_derivatives.py -k 'test_loss and panels'",
    ),
    Mutation(
        "Affinities miss the square root of the product of both softmaxes.",
        f"{PANELS}/_force_field.py",
        "alpha=0.5",
        "alpha=1.0",
        f"{FORCE} -k 'test_force and panels'",
    ),
    Mutation(
        "A point's affinity to itself enters the sums.",
        PANELS,
        "self_pairs(a, i).fill_(problem.self_logit)",
        "pass",
        f"{FORCE} -k 'test_force and panels'",
    ),
    Mutation(
        "The denominator of the toy drift field is not bounded from below.",
        PANELS,
        "total.clamp_min_(problem.denominator)",
        "pass",
        f"{FORCE} -k 'test_drift_field and panels'",
    ),
    # These are errors of autograd and of the losses.
    Mutation(
        "The backward pass forgets the upstream gradient of the paired loss.",
        "fused_contrastive/autograd/similarity.py",
        "g_rows, g_cols = g_loss, None",
        "g_rows, g_cols = torch.ones_like(rows[0]), None",
        f"{ACCURACY} -k 'test_loss and panels and nt_xent'",
    ),
    Mutation(
        "The loss is softplus of the positive less the log-sum-exp.",
        "fused_contrastive/losses",
        "lse - pos + 0 *",
        "pos - lse + 0 *",
        f"{ACCURACY} -k 'test_loss and panels and sup_con'",
    ),
    Mutation(
        "The weights of the positives of DCLW do not have the mean 1.",
        "fused_contrastive/losses/dcl.py",
        "2 - relative(",
        "1 - relative(",
        "tests/losses/test_dcl.py",
    ),
    Mutation(
        "An anchor is counted among its own positives.",
        "fused_contrastive/losses/_classes.py",
        "self.views * size - 1",
        "self.views * size",
        "tests/losses/test_labels.py -k against_the_oracle",
    ),
    Mutation(
        "The memory bank starts again one row too early.",
        "fused_contrastive/memory_bank.py",
        "else end % K",
        "else end % (K - 1)",
        "tests/pytorch/test_memory_bank.py",
    ),
    Mutation(
        "A chunk of the cached step receives the gradients of the first rows.",
        "fused_contrastive/tools/grad_cache.py",
        "rows = slice(self.starts[index], self.starts[index] + self.size)",
        "rows = slice(0, self.size)",
        "tests/pytorch/test_grad_cache.py",
    ),
    Mutation(
        "SupContrast's loss is not scaled by the ratio of its two temperatures.",
        "fused_contrastive/integrations/supcontrast.py",
        "(self.temperature / self.base_temperature) * loss",
        "loss",
        "tests/test_integrations.py -k supcontrast",
    ),
    # These are errors of the Triton kernels.
    Mutation(
        "A row is compared with itself where a tile crosses the diagonal.",
        "triton_kernels",
        'if KIND == "not_self":\n        if (low <= 0) & (high >= 0)',
        'if KIND == "not_self":\n        if (low < 0) & (high < 0)',
        f"{TRITON} -k test_values_and_gradients",
    ),
    Mutation(
        "The mirrored half of a panel is not written.",
        "triton_kernels/pair_weight.py",
        "if j // SQUARE > i // SQUARE:",
        "if j // SQUARE > i // SQUARE + 1000:",
        TRITON,
    ),
    Mutation(
        "Running sums are not rescaled when a larger logit arrives.",
        "triton_kernels/reduce_tiles.py",
        "tl.fma(total, tl.exp2(maximum - shift), tl.sum(e, AXIS))",
        "total + tl.sum(e, AXIS)",
        TRITON,
    ),
    Mutation(
        "The positive of a row pushes instead of pulling.",
        "triton_kernels/finish.py",
        "total -= near_pull[:, None]",
        "total += near_pull[:, None]",
        f"{TRITON} -k test_values_and_gradients",
    ),
    Mutation(
        "The gradient of normalised rows is not projected.",
        "triton_kernels/finish.py",
        "tangent = tl.where(length < 0.99999e12, tangent, 0.0)",
        "tangent = tangent * 0.0",
        f"{TRITON} -k test_values_and_gradients",
    ),
    Mutation(
        "Two partial sums are added without a common maximum.",
        "triton_kernels",
        "other_total * tl.exp(other_top - shift)",
        "other_total",
        "tests/backends/test_triton_force.py -k test_forward",
    ),
    # These are errors of the CPU extension.
    Mutation(
        "The pair of a row with itself is looked for one column too far.",
        "csrc/cpu/tile.h",
        "const int64_t self = i + offset - j0;",
        "const int64_t self = i + offset - j0 + 1;",
        "tests/backends/test_cpu_similarity.py -k one_set",
    ),
    Mutation(
        "With one set the mirrored half of a tile of weights is dropped.",
        "csrc/cpu/gradient_pass.h",
        "if (I.index != J.index) add_columns(",
        "if (I.index == J.index) add_columns(",
        "tests/backends/test_cpu_similarity.py -k one_set",
    ),
    Mutation(
        "The positive's own gradient has the wrong sign.",
        "csrc/cpu",
        "positive_[i] = -row_[i];",
        "positive_[i] = row_[i];",
        f"{GRADIENTS} -k 'test_loss and cpu and nt_xent'",
    ),
    Mutation(
        "Column sums of a tile begin with those of the tile before.",
        "csrc/cpu",
        "if (bias) std::fill_n(s.column_sums, size_, T(0));",
        "",
        f"{GRADIENTS} -k 'test_primitive and cpu and bias'",
    ),
    # These are errors of the CUDA kernels, which the host shim runs.
    Mutation(
        "The loss of both directions is their sum, not their mean.",
        "csrc/cuda",
        "col_lse.undefined(target)))) /\n        2;",
        "col_lse.undefined(target))));",
        f"{CUDA} -k 'test_positive and clip'",
    ),
    Mutation(
        "With one set the pull of a positive's partner has the wrong sign.",
        "csrc/cuda",
        "if (p.far) value -= far_pull",
        "if (p.far) value += far_pull",
        f"{CUDA} -k 'test_positive and nt_xent'",
    ),
)
