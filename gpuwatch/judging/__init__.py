"""Between state and detectors: which step and which moment a rule is shown, and when."""
