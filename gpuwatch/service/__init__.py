"""The daemon as a Unix service: what it needs to start, its signals, its log, systemd, and parts that fail alone."""
