"""`python -m perlhf_jax COMMAND ...`, which is `perlhf COMMAND ...`.

With `-m` Python itself looks in the current folder for every import, first of
all, and nothing here can prevent what it has imported by then. It is taken off
the path before anything else is, so that `python -m` runs no more code of the
folder than `perlhf` does; in a folder whose files might hide Python's own
modules or this package, use `perlhf`, or `python -P -m`.
"""

import os
import sys


def main() -> None:
  """Runs the command line without the folder that `-m` has put on the path."""
  ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
  if not sys.flags.safe_path and os.path.realpath(sys.path[0]) != ours:
    del sys.path[0]
  from perlhf_jax.cli import main as command_line

  command_line.cli()


if __name__ == '__main__':
  main()
