"""Training from a .dqz: the torch Dataset (`dataset`), the loader of batches (`loader`) and what they need."""
