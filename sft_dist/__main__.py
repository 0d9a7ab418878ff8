"""`python -m sft_dist ...`: the command line."""

from sft_dist.cli import main

if __name__ == "__main__":
    main()
