"""Pages for eyes and for scripts: what a comparison found, on the screen, as JSON and as one HTML file."""
