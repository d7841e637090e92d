"""Judgement: one rule a file in rules/, pure functions of what the state shows them. No I/O, no clock, no threads."""
