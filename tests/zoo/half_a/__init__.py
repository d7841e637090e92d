"""Written before the rules were tuned."""
