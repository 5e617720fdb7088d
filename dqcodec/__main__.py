"""python -m dqcodec: the command line."""

from dqcodec.cli import main

main()
