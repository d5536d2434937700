"""Markov chain Monte Carlo with mini-batch gradients."""
