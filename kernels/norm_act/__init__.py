"""What follows a convolution: normalise, activate, add, pad."""
