"""Training from a .dqz: the torch Dataset (`dataset`)."""
