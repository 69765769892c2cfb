"""PPO: its configuration, its formulas as pure functions, the rollout, the rewards, and the trainer."""
