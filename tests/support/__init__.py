"""The tests share these cases, calls of the backends' contract, and processes."""
