"""Batches: their nesting, the sampler that resizes them, and what ranks hold of them."""
