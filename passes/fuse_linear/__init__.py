"""Fusions of linear layers."""
