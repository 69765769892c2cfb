"""The gate before the first step of a stage: data, models and settings that would fail late or without a sign.

The stages, `chatpipe check` and PPOTrainer run the same checks, so each question is asked in one place.
"""
