"""Integers in place of floats: where Q/DQ pairs go, and the passes that put them there."""
