"""What pages share: templates, pictures as SVG, numbers in words, lines on the screen."""
