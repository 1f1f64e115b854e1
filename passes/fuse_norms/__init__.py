"""Fusions of normalizations."""
