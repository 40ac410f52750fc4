"""The registered torch ops of each family: contract, schema, fake implementation and vmap rule."""
