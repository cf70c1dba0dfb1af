"""`perlhf report`: one HTML page about a run, the runs of a folder, a sweep."""
