"""This selects the combinations of parameters that `make test` runs.

`make nightly` runs the others as well.
"""

from __future__ import annotations


def one_in(step: int, params: dict, **values) -> bool:
    """Tell whether these parameters belong to a fair part of all combinations.

    The part is one combination in `step`. The places of its parameters in their lists add up to a
    multiple of `step`. So every value occurs. Every pair of values does, too, where a third list is
    as long as `step`.
    """
    return sum(list(known).index(params[name]) for name, known in values.items()) % step == 0
