"""What runs that pruned have saved, as a table and as PruneTrain's pictures, from records; also others' memory."""
