"""Ranking: completions, the page and programs that rank them, the store of rankings, export and statistics."""
