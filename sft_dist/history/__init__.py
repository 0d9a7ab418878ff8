"""What runs left behind: read, filtered and listed without torch."""
