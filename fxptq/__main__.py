"""`python -m fxptq`: the command line."""

from fxptq.cli import main

main()
