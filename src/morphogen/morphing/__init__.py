"""Changing a model from one sub-network to another."""
