"""Runs of `everywhere_program.py` on meshes and hosts of many kinds."""

import os
import pathlib
import socket
import subprocess
import sys

import everywhere_program

_TESTS = pathlib.Path(__file__).parents[1]
_PROGRAM = pathlib.Path(everywhere_program.__file__)

# Name: mesh shape, processes, devices of each.
RUNS = {
  'data': ((8, 1, 1), 1, 8),
  'all_axes': ((2, 2, 2), 1, 8),
  'fsdp_tensor': ((1, 4, 2), 1, 8),
  'two_hosts': ((2, 1, 1), 2, 1),
  # Pairs of hosts split the computation of the same rows.
  'four_hosts': ((1, 2, 2), 4, 1),
}


def run(folder, mesh_shape, processes, devices, stages='srpu'):
  """Runs stages in processes of their own; see `everywhere_program`."""
  everywhere_program.prepare(folder)
  flags = os.environ.get('XLA_FLAGS', '')
  environment = {
    **os.environ,
    'PYTHONPATH': os.pathsep.join(
      map(str, (_TESTS.parent, _TESTS, _PROGRAM.parent))
    ),
    'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={devices}',
  }
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  started = []
  for index in range(processes):
    hosts = [
      f'--coordinator_address={address}',
      f'--num_processes={processes}',
      f'--process_id={index}',
    ]
    shape = str(mesh_shape).replace(' ', '')
    started.append(
      subprocess.Popen(
        [
          *(sys.executable, _PROGRAM, folder, shape, stages),
          *(hosts if processes > 1 else ()),
        ],
        cwd=_TESTS.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  for process in started:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-4000:]
