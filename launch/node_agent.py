"""The door of an agent: `python -m launch.node_agent ...` runs one node's ranks of a job. Signals are held back before anything else is read."""

import gc
import sys
from collections.abc import Sequence

from launch import hold


def become(arguments: Sequence[str]) -> int:
    """Be an agent in this process; the exit code of its node."""
    hold.back()
    gc.disable()  # reading torch leaves no garbage, and looking for it would take a sixth of the time

    from launch import agent

    gc.freeze()  # nor is it looked for at the end, which comes half a second earlier
    gc.enable()
    return agent.main(arguments)


if __name__ == "__main__":
    sys.exit(become(sys.argv[1:]))
