"""Fusions of activations."""
