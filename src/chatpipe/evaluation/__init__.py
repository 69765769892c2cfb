"""Evaluation: what is measured on held-out data, and the verdicts drawn from it."""
