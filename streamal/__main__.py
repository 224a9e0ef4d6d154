"""`python -m streamal`."""

from streamal.cli import main

main()
