"""A recorded run read back whole, from its journal: what reports, comparisons and advice are made of.

Nothing here runs in the daemon, which keeps bounded windows only.
"""
