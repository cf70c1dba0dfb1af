import re
import subprocess

import launch_world


def test_the_dockerfile_installs_as_run_tests_does():
  instructions = [
    line.split(maxsplit=1)
    for line in (launch_world.LAUNCH / 'Dockerfile').read_text().splitlines()
    if re.match('[A-Z]+ ', line)
  ]
  runs = [text for name, text in instructions if name == 'RUN']
  tests = (launch_world.LAUNCH / 'run_tests.sh').read_text().splitlines()
  # All that run_tests.sh does before it exports variables and runs the tools.
  start = next(i for i, line in enumerate(tests) if line.startswith('cd '))
  end = next(i for i, line in enumerate(tests) if line.startswith('export '))
  commands = [line for line in tests[start + 1 : end] if line]
  assert [run.replace('${EXTRAS}', 'test') for run in runs] == commands
  # The whole checkout is there before, in the folder where it then runs.
  names = [name for name, _ in instructions]
  assert names.index('WORKDIR') < names.index('COPY') < names.index('RUN')
  assert ['COPY', '. .'] in instructions


def test_hadolint_finds_nothing():
  result = subprocess.run(
    [
      launch_world.TOOLS / 'hadolint',
      '--no-color',
      launch_world.LAUNCH / 'Dockerfile',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout + result.stderr == ''


def test_what_git_ignores_stays_out_of_the_image():
  def patterns(path):
    lines = path.read_text().splitlines()
    return {
      line.strip('/').removeprefix('**/')
      for line in lines
      if line and not line.startswith('#')
    }

  ignored = patterns(launch_world.LAUNCH / 'Dockerfile.dockerignore')
  assert ignored == patterns(launch_world.ROOT / '.gitignore') | {'.git'}
