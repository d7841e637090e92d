"""One rule a file. The module's docstring is the rule's page."""
