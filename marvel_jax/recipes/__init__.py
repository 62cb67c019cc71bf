"""Whole runs: stages that resume, each with a manifest."""
