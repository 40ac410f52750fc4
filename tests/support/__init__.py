"""What the tests share: cases, calls of the backends' contract, and processes."""
