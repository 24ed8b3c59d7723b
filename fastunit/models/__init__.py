"""Networks, as modules: layers, autoencoders, discriminators, and the pairs of both releases."""
