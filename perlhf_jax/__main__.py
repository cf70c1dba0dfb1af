"""`python -m perlhf_jax COMMAND ...`, the same as `perlhf COMMAND ...`.

With `-m`, Python puts the current folder first on the import path. This module
removes it before it imports anything else, so that later imports do not run
files of that folder. It cannot undo what Python has imported by then: in a
folder whose files might hide Python's own modules or this package, use `perlhf`
or `python -P -m`.
"""

import os
import sys


def main() -> None:
  """Runs the command line without the folder that `-m` put on the path."""
  ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
  if not sys.flags.safe_path and os.path.realpath(sys.path[0]) != ours:
    del sys.path[0]
  from perlhf_jax.cli import main as command_line

  command_line.cli()


if __name__ == '__main__':
  main()
