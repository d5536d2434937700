"""Variational inference: families, objectives, the automatic stop, and the methods made of them."""
