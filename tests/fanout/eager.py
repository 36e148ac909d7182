"""The command, with workers for ingest however few the images are: `python -m tests.fanout.eager ARGUMENTS`."""

from limbeck import cli
from limbeck.fanout import supervisor

if __name__ == "__main__":
    supervisor._ENOUGH_IMAGES_HERE = supervisor._ENOUGH_IMAGES_THERE = 0
    cli.main()
