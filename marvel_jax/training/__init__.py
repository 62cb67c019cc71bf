"""Configuration, train state, the step, checkpoints and the loop."""
