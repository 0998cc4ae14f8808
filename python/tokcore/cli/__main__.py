"""``python -m tokcore.cli``."""

from tokcore.cli import main

main()
