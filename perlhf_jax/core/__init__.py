"""Aliases, masks and tree paths: what every floor above stands on."""
