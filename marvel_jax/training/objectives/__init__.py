"""What a train step minimises: one file an objective, and what they share."""
