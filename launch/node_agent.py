"""The door of an agent: `python -m launch.node_agent ...` runs one node's ranks of a job. Signals are held back before anything else is read."""

import sys

from launch import hold

if __name__ == "__main__":
    hold.back()

    from launch.agent import main

    sys.exit(main())
