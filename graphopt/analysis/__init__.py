"""Analyses: what passes may ask about a graph."""
