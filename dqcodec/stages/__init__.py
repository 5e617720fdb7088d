"""The stages of encoding, each a function of the images and of what the stages before it found."""
