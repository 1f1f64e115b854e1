"""Passes that take parts of a model away, or numbers out of its weights."""
