"""The door for `torchrun` and `accelerate launch`: `sft_dist/train.py CONFIG [key=value]...` trains CONFIG."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python and the launchers put this file's folder first on the path, where `datasets` and `evaluate` would hide
    # Hugging Face's libraries of those names. The repository takes its place.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

    from sft_dist.cli import main

    main(["train", *sys.argv[1:]])
