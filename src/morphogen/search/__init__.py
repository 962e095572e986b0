"""The elastic supernet of a stage, and the search for the candidate that goes on."""
