"""What every stage needs from a trainer: arguments, resume points, callbacks, launch."""
