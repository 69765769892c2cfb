"""The reward model: learned from K-wise rankings, read at the last token, centred on demonstrations."""
