"""Pretraining: its trainer, its objectives, and what a run of it would take."""
