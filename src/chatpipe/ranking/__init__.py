"""Sampling completions and having them ranked."""
