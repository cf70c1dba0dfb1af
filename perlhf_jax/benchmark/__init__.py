"""`perlhf benchmark` and `perlhf benchmark_input`."""
