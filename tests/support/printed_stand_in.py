"""Stands for perlhf or python: hands its call over to the test's process."""

import json
import os
import pathlib
import socket
import sys

# Of what a shell was told; the rest is the test's own.
VARIABLES = ('PERLHF_DATA_DIR', 'PERLHF_CACHE_DIR')

with socket.socket(socket.AF_UNIX) as connection:
  connection.connect(os.environ['PERLHF_TEST_SOCKET'])
  request = {
    'program': pathlib.Path(sys.argv[0]).name,
    'arguments': sys.argv[1:],
    # Not called by a script, a launcher for example.
    'is_typed': str(os.getppid()) == os.environ['TYPED'],
    'place': os.environ['PLACE'],
    'folder': os.getcwd(),
    'environment': {
      name: os.environ[name] for name in VARIABLES if name in os.environ
    },
  }
  connection.sendall(json.dumps(request).encode() + b'\n')
  answer = json.loads(connection.makefile().read())
sys.stdout.write(answer['stdout'])
sys.stderr.write(answer['stderr'])
sys.exit(answer['code'])
