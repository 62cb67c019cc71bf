"""Items, formats on disk, tokens, pixels, and the packed batches made of them (host, numpy)."""
