"""Losses over the ranks of a torch.distributed process group: what they exchange, and how.

`groups` finds out which group a call means and lets its ranks agree on sizes and options.
`exchange` takes columns to the other ranks and their results home, by gathering or around a ring.
`collectives` has the few plain collectives. Nothing here knows a loss, and nothing is
differentiable; ops/over_ranks.py and autograd/over_ranks.py are the next layers.
"""
