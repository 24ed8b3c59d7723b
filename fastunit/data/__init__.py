"""Image files: found, checked, read, and fed to training."""
