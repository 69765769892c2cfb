"""PPO: experience, advantages, KL, losses as pure tensor functions, and the trainer that runs them."""
