"""torch.func.vmap of the ops.

The mapped dimension becomes part of the groups G, so that one call serves all elements. A call is
repeated for each element instead where its scale is mapped, or where the scale's gradient is asked
for.
"""

from __future__ import annotations

import torch

from .._torch_internals import argument_names

GROUP_DIMENSION = {"rows": 1, "cols": 1, "scale": None, "t_scale": None}
"""The dimension of G in those tensor arguments where it is not the first.

None stands for arguments without such a dimension.
"""


def folding_rule(op, output_dimensions: tuple):
    """The vmap rule of `op`.

    `output_dimensions` has the dimension of G in each output, None where it has none.
    """
    names = argument_names(op)
    input_dimensions = [GROUP_DIMENSION.get(name, 0) for name in names]

    def rule(info, mapped, *arguments):
        with_scale = "need_scale" in names and arguments[names.index("need_scale")]
        if with_scale or any(
            m is not None and d is None for m, d in zip(mapped, input_dimensions, strict=True)
        ):
            return repeat(op, info.batch_size, mapped, arguments)
        folded = (
            fold(x, m, d, info.batch_size)
            for x, m, d in zip(arguments, mapped, input_dimensions, strict=True)
        )
        outputs = op(*folded)
        present = [x.numel() > 0 for x in outputs]
        return (
            tuple(
                x.unflatten(d, (info.batch_size, -1)) if here else x
                for x, d, here in zip(outputs, output_dimensions, present, strict=True)
            ),
            tuple(d if here else None for d, here in zip(output_dimensions, present, strict=True)),
        )

    return rule


def fold(x, mapped: int | None, dimension: int | None, size: int):
    """x with the mapped dimension and its groups as one. Where x is not mapped it is repeated.

    What is not a tensor, is a scalar or is absent stays as it is.
    """
    if not isinstance(x, torch.Tensor) or dimension is None or x.numel() == 0:
        return x
    if mapped is None:
        x = x.unsqueeze(dimension).expand(*x.shape[:dimension], size, *x.shape[dimension:])
    else:
        x = x.movedim(mapped, dimension)
    # An expanded dimension flattens to a view of stride 0.
    return x.flatten(dimension, dimension + 1).contiguous()


def repeat(op, size: int, mapped: tuple, arguments: tuple):
    """Make one call for each element, and stack the outputs. Absent ones stay absent."""
    calls = [
        op(
            *(
                x if m is None else x.select(m, n).contiguous()
                for x, m in zip(arguments, mapped, strict=True)
            )
        )
        for n in range(size)
    ]
    outputs = list(zip(*calls, strict=True))
    present = [x[0].numel() > 0 for x in outputs]
    return (
        tuple(torch.stack(x) if here else x[0] for x, here in zip(outputs, present, strict=True)),
        tuple(0 if here else None for here in present),
    )
