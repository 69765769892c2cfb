"""What is refused before the first step of a stage, because it would fail late or go wrong in silence."""
