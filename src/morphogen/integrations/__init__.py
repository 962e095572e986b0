"""Morphogen in the training loops of other libraries; each file needs its own, and none is imported by another part."""
