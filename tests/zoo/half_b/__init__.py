"""Written after the rules were tuned on half A, and never tuned on."""
