"""Errors, checks, masks and tree paths, which all other packages use."""
