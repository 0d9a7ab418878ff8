"""Starts the same run anywhere: one launch plan, many ways to carry it out. No torch in here, but for what runs on the nodes."""
