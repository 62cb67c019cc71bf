"""What a run will take on machines that need not be here."""
