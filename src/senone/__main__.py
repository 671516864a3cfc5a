"""`python -m senone` is `senone`."""

from senone.cli import main

main()
