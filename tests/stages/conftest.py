"""Set-up of the tests of this folder: a small demo world."""

from small_world import small_world

__all__ = ['small_world']
