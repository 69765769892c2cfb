"""Typer commands: each parses its words, calls one function and prints what comes back."""
