"""The backends: each computes the same functions (ops/) in its own way, and `dispatch` chooses one for every call."""
