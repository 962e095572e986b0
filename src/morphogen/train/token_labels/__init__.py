"""Token labelling, which VOLO is trained with: label maps, the teacher that makes them, and the loss."""
