"""A collection behind a JSON API and a page: one process, safe by default."""
