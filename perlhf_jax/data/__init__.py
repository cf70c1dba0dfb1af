"""Records to batches: tasks, vocabularies, feature converters, the pipeline."""
