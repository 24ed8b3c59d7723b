"""What every part of fastunit may use; imports nothing of fastunit."""
