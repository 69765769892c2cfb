"""PPO: one loop of rollouts and updates, its settings, its formulas as pure functions, metrics and alarms."""
