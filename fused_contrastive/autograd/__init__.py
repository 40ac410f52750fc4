"""The autograd formulas of each family, and the functions that the losses call."""
