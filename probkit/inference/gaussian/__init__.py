"""Gaussian approximations and exact Gaussian solves."""
