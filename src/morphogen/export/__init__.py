"""A trained network leaves: weights with their sub-network, and programs that run without its code."""
