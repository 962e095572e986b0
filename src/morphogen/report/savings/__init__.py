"""What runs that pruned have saved: a table, and the pictures of PruneTrain's figures, from records."""
