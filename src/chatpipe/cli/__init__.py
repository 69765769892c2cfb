"""The front door: Typer, one module per command, no logic."""
