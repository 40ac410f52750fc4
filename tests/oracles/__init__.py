"""The oracles are independent of the package. They compute in float64 with NumPy."""
