"""The reward model: learned from K-wise rankings, scores a sequence at its last token, centred on demonstrations."""
