"""Scaling studies: many runs of one recipe, what they measured, and what follows from it."""
