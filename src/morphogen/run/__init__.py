"""A run: a network that changes size inside somebody's training loop, and watches over that loop."""
