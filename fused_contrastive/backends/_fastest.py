"""The faster of the verified GPU backends by (compute capability, op, matrix dtype) and D, as ``python -m bench.fastest`` found it."""

FASTEST: dict[tuple[str, str, str], dict[int, str]] = {}
