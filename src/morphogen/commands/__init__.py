"""The commands of the command line, one a file: its settings, what it does, examples for its help."""
