"""The backends compute the same functions in different ways; `dispatch` chooses one per call.

A backend is a module with

- ``refusal(device, dtype)``: None where it can serve tensors of this device and matrix dtype, else
  the reason;
- ``status()``: what it can do here, ``"available: ..."`` or ``"unavailable: ..."`` with the reason,
  for `backends()`;
- one function per op: ``similarity_forward``, ``similarity_backward``, ``sigmoid_forward``,
  ``sigmoid_backward``,
  ``force_forward``, ``distance_sums`` and ``distance_gradient``. The contracts are in ops/;
- ``FLAT``: the names of those functions that take an op's own arguments, less the backend, and
  return its outputs.

A function that is not in ``FLAT`` takes and returns the named tuples of problem.py, in which an
absent tensor is None. ops/_codec.py states the signature of each and translates. `distance_sums`
and `distance_gradient` have no named tuples. The CPU backend is flat throughout, because its calls
are short enough for the translation to be felt.

Second derivatives and the backward pass of the force have one implementation for all backends, in
panels/.

To add a backend, add one folder (or module) here and its row in ``dispatch._MODULES``. Give it a
place in ``dispatch._PREFERENCE`` where it should be a device's default. Importing it must never
fail: where it cannot work, `refusal` says why. The tests run every registered name.
"""
