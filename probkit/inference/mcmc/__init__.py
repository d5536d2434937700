"""Markov chain Monte Carlo with whole-data gradients."""
