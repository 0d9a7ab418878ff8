"""`python -m launch ...` is `sft-launch ...`."""

from launch.cli import main

if __name__ == "__main__":
    main()
