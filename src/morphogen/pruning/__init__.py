"""Pruning while training: the group lasso, what it has made sparse, and the sub-network that is left."""
