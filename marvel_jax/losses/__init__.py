"""Losses on arrays; they know nothing of models."""
