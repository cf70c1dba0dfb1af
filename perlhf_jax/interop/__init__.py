"""Other people's checkpoint formats, in and out."""
