"""Training machinery that knows no task."""
