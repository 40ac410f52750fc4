"""Independent float64 oracles in NumPy."""
