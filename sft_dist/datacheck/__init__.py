"""What is wrong with the images, before a run."""
