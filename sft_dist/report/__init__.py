"""One run on a page, and what its model shows."""
