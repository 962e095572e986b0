"""Reading a model: ops, ties, channel groups."""
