"""One HTML page from output folders: no script, nothing from elsewhere, every text escaped."""
