"""Embedding, vector stores, exact and ScaNN search, metrics, protocols and reports."""
