"""Runs of `everywhere_program.py` on meshes and hosts of many kinds."""

import os
import socket

import everywhere_program
import starting

_LONGEST = 900

# Name: mesh shape, processes, devices of each.
RUNS = {
  'data': ((8, 1, 1), 1, 8),
  'all_axes': ((2, 2, 2), 1, 8),
  'fsdp_tensor': ((1, 4, 2), 1, 8),
  'two_hosts': ((2, 1, 1), 2, 1),
  # Pairs of hosts split the computation of the same rows.
  'four_hosts': ((1, 2, 2), 4, 1),
}


def run(preloaded, folder, mesh_shape, processes, devices, stages='srpu'):
  """Runs stages in processes of their own; see `everywhere_program`."""
  everywhere_program.prepare(folder)
  flags = os.environ.get('XLA_FLAGS', '')
  devices = f'--xla_force_host_platform_device_count={devices}'
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  shape = str(mesh_shape).replace(' ', '')
  started = []
  for index in range(processes):
    hosts = [
      f'--coordinator_address={address}',
      f'--num_processes={processes}',
      f'--process_id={index}',
    ]
    started.append(
      preloaded.start(
        [folder, shape, stages, *(hosts if processes > 1 else ())],
        starting.ROOT,
        environment={'XLA_FLAGS': f'{flags} {devices}'},
        program=everywhere_program.__file__,
      )
    )
  for process in started:
    outcome = process.wait(_LONGEST)
    assert outcome.code == 0, outcome.err[-4000:]
