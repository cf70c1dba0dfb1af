"""Floor 1: the mathematics of learning. Arrays in, arrays out."""
