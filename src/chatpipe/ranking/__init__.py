"""Ranking answers: the answers to rank, the store of rankings, the people and programs who rank, and the export."""
