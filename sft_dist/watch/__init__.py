"""Runs as they go, from their files alone."""
