"""`python -m gpuwatch`: the command line, for where the `gpuwatch` script is not on PATH."""

from gpuwatch.cli import main

main()
