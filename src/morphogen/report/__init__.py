"""Figures, tables and pictures of runs."""
