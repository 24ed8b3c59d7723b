"""Network modules: layers, VAEs, discriminators, and both releases' networks of two domains."""
