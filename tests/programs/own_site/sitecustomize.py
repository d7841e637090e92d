"""A user's own start-up file: it must run once, as if gpuwatch's own did not stand before it on the path."""

import sys

sys.own_site_runs = getattr(sys, "own_site_runs", 0) + 1
