"""Test sets beside M-BEIR: an entry each that says how it is read and judged."""
