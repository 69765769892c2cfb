"""Metrics of a model on data it was not trained on, their intervals, and the verdicts drawn from them."""
