"""What the operations share: where they run, argument checks, memory formats, weight layouts."""
