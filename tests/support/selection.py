"""Which combinations of parameters `make test` runs; `make nightly` runs the others as well."""

from __future__ import annotations


def one_in(step: int, params: dict, **values) -> bool:
    """Whether these parameters belong to a fair part of all combinations, one in `step`.

    The places of the parameters in their lists add up to a multiple of `step`. So every value
    occurs, and every pair of values does where a third list is as long as `step`.
    """
    return sum(list(known).index(params[name]) for name, known in values.items()) % step == 0
