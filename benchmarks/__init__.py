"""Comparisons of recommenders inside the environment, and speed measurements beside their peers."""
