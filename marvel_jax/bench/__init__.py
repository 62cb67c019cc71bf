"""What `marvel bench ...` runs: each prints the machine, a table and one JSON object."""
