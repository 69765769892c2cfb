"""Ranking: completions to rank, people and programs who rank them, the store of rankings, export and statistics."""
