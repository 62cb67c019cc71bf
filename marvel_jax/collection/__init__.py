"""Searchable collections: a folder of pictures and texts as vectors that know what they show."""
