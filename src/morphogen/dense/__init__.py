"""The dense network as plain data, its sub-networks, and its double on fake tensors."""
