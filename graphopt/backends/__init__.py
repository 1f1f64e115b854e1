"""Backends: what a model is compiled for, and how it is run there."""
