"""The command line: `perlhf COMMAND ...`, or `python -m perlhf_jax.main`.

Mistakes in what the user gave (`errors.UserError`) are printed in one message
without a traceback and end with exit code 2. A run that was told to stop, or
that lost another host or did not meet it, ends with exit code 75 (EX_TEMPFAIL):
started again, the same command goes on. Anything else is a fault of this
library and keeps its traceback.
"""

from collections.abc import Callable, Mapping, Sequence
import difflib
import functools
import importlib
import sys
from typing import Any

from perlhf_jax import command_line
from perlhf_jax import gin_loading
from perlhf_jax import hosts
from perlhf_jax import logs
from perlhf_jax.command_line import Arguments
from perlhf_jax.command_line import Command
from perlhf_jax.command_line import Flag
from perlhf_jax.core import errors
from perlhf_jax.core import operative_config

_TRAIN_EXAMPLE = (
  'perlhf {name} --gin_file=gin/runs/{name}.gin'
  ' --gin_file=gin/models/t5_tiny.gin --gin_file=gin/lora/{lora}.gin'
  ' --gin.MIXTURE_OR_TASK_NAME="\'{task}\'"'
  ' --gin.MODEL_DIR="\'runs/{name}\'" --gin.TRAIN_STEPS=500'
)

_CHECKPOINT = (
  'a MODEL_DIR (its newest step), the folder of one step, or a Hugging Face T5'
  ' directory'
)

_BASE = "where an adapter's base is, if it has been moved"

_MESH_SHAPE = Flag(
  'mesh_shape',
  'sizes of (data, fsdp, tensor), for models that do not fit one device',
  default='-1,1,1',
)

_HELP = ('--help', '-h')

COMMANDS: Mapping[str, Command] = {
  'train_sft': Command(
    help='supervised tuning on prompts and good responses',
    module='perlhf_jax.stages.train_sft',
    function='train_sft',
    example=_TRAIN_EXAMPLE.format(
      name='train_sft', task='demo_sft', lora='none'
    ),
    gin_file='gin/runs/train_sft.gin',
    on_hosts=True,
  ),
  'train_reward': Command(
    help='a reward model, from pairs of responses or from labelled ones',
    module='perlhf_jax.stages.train_reward',
    function='train_reward',
    example=_TRAIN_EXAMPLE.format(
      name='train_reward', task='demo_rm', lora='attention'
    )
    + ' --gin.INITIAL_CHECKPOINT_PATH="\'runs/train_sft\'"',
    gin_file='gin/runs/train_reward.gin',
    on_hosts=True,
  ),
  'train_policy': Command(
    help='reinforcement learning of a policy against a reward',
    module='perlhf_jax.stages.train_policy',
    function='train_policy',
    example=_TRAIN_EXAMPLE.format(
      name='train_policy', task='demo_prompts', lora='attention'
    )
    + ' --gin_file=gin/rl/reinforce.gin'
    ' --gin.INITIAL_CHECKPOINT_PATH="\'runs/train_sft\'"'
    ' --gin.REWARD_CHECKPOINT="\'runs/train_reward\'"',
    gin_file='gin/runs/train_policy.gin',
    on_hosts=True,
  ),
  'evaluate': Command(
    help='the metrics of a checkpoint on a task, into eval.json',
    module='perlhf_jax.stages.evaluate',
    function='evaluate',
    example=(
      'perlhf evaluate --checkpoint=runs/train_reward'
      ' --gin.MIXTURE_OR_TASK_NAME="\'demo_rm\'"'
    ),
    flags=(
      Flag('checkpoint', _CHECKPOINT, macro='CHECKPOINT_PATH'),
      Flag('batch_size', 'examples a step', int, macro='BATCH_SIZE'),
      Flag('base_checkpoint', _BASE, macro='BASE_CHECKPOINT_PATH'),
    ),
    gin_file='gin/runs/evaluate.gin',
    on_hosts=True,
  ),
  'score': Command(
    help='the score, or the log-probability, of each line of a file',
    module='perlhf_jax.stages.score',
    function='score',
    example=(
      'perlhf score --checkpoint=runs/train_reward --input=pairs.jsonl'
      ' --output=scores.jsonl'
    ),
    flags=(
      Flag('checkpoint', _CHECKPOINT, required=True),
      Flag(
        'input',
        'a .jsonl file of lines {"prompt": ..., "response": ...}',
        required=True,
        argument='input_path',
      ),
      Flag(
        'output',
        'the file to write: the same lines with "score" or "logprob"',
        required=True,
        argument='output_path',
      ),
      Flag('batch_size', 'responses a step', int, default=32),
      Flag('base_checkpoint', _BASE),
      Flag('prompt_length', "longest prompt; default: the training's", int),
      Flag('response_length', "longest response; default: the training's", int),
      _MESH_SHAPE,
    ),
    on_hosts=True,
  ),
  'generate': Command(
    help='a response, or several, to each line of a file',
    module='perlhf_jax.stages.generate',
    function='generate',
    example=(
      'perlhf generate --checkpoint=runs/train_sft --input=prompts.jsonl'
      ' --output=responses.jsonl --temperature=0'
    ),
    flags=(
      Flag('checkpoint', _CHECKPOINT, required=True),
      Flag(
        'input',
        'a .jsonl file of lines {"prompt": ...}',
        required=True,
        argument='input_path',
      ),
      Flag(
        'output',
        'the file to write: the same lines with "response"',
        required=True,
        argument='output_path',
      ),
      Flag(
        'temperature',
        'randomness: 0 takes the likeliest token, 1 samples the model as it'
        ' is; default: 1',
        float,
        minimum=0,
      ),
      Flag('top_k', 'samples from the k likeliest tokens; default: all', int),
      Flag(
        'top_p',
        'samples from the likeliest tokens of this probability; default: 1',
        float,
        minimum=0,
      ),
      Flag('num_beams', 'beam search of this width instead of sampling', int),
      Flag(
        'num_samples',
        'responses to a prompt; "response" is a list if several',
        int,
        default=1,
      ),
      Flag('max_length', "longest response; default: the training's", int),
      Flag('seed', 'of the sampling', int, default=0, minimum=0),
      Flag('batch_size', 'prompts a step', int, default=32),
      Flag('base_checkpoint', _BASE),
      Flag('prompt_length', "longest prompt; default: the training's", int),
      _MESH_SHAPE,
    ),
    on_hosts=True,
  ),
  'benchmark': Command(
    help='LoRA against full tuning here: time, memory, trained share',
    module='perlhf_jax.stages.benchmark',
    function='benchmark',
    example=(
      'perlhf benchmark --gin_file=gin/runs/benchmark.gin'
      ' --gin_file=gin/models/t5_tiny.gin --gin_file=gin/rl/reinforce.gin'
      ' --output=benchmark.json'
    ),
    flags=(Flag('output', 'a JSON file for the figures', macro='OUTPUT'),),
    gin_file='gin/runs/benchmark.gin',
    on_hosts=True,
  ),
  'benchmark_input': Command(
    help='images a second that the input pipeline decodes and batches here',
    module='perlhf_jax.stages.benchmark_input',
    function='benchmark_input',
    example='perlhf benchmark_input --task=easy_vqa_rm --image_size=64',
    flags=(
      Flag('task', 'a registered task with images', required=True),
      Flag('image_size', 'pixels of a side', int, default=64, minimum=1),
      Flag('split', 'split to read', default='train'),
      Flag('batch_size', 'examples of a batch', int, default=64, minimum=1),
      Flag('num_batches', 'batches of a pass', int, default=100, minimum=1),
      Flag('num_images', 'most images of an example', int, default=1),
      Flag('repeats', 'timed passes', int, default=5, minimum=1),
      Flag('module', 'a module of yours that registers the task'),
      Flag('output', 'a JSON file for the figures'),
    ),
  ),
  'plan': Command(
    help='which TPU slice a run fits, found without one',
    module='perlhf_jax.stages.plan',
    function='plan',
    example=(
      'perlhf plan --gin_file=gin/runs/plan.gin'
      ' --gin_file=gin/models/t5_1_1_xxl.gin'
      ' --gin_file=gin/rl/reinforce.gin --topology=v5e-16,v5p-8'
      ' --output=plan.json'
    ),
    flags=(
      Flag(
        'topology',
        'slices of Cloud TPU, with commas between',
        macro='TOPOLOGY',
      ),
      Flag(
        'search',
        'batch_size: the largest batch that fits; topology: the smallest slice',
        macro='SEARCH',
      ),
      Flag('output', 'a JSON file for the rows', macro='OUTPUT'),
    ),
    gin_file='gin/runs/plan.gin',
  ),
  'tasks': Command(
    help='the registered tasks: source, licence, and where the files go',
    module='perlhf_jax.stages.list_tasks',
    function='list_tasks',
    example='perlhf tasks',
    flags=(Flag('module', 'a module of yours that registers tasks'),),
  ),
  'train_vocabulary': Command(
    help='a SentencePiece vocabulary of the text of a task',
    module='perlhf_jax.data.vocabulary_training',
    function='train_vocabulary',
    example=(
      'perlhf train_vocabulary --task=taskmaster_coffee_sft'
      ' --output=runs/coffee.model --vocab_size=2000'
    ),
    flags=(
      Flag('task', 'a registered task with text features', required=True),
      Flag(
        'output', 'the file to write', required=True, argument='output_path'
      ),
      Flag('vocab_size', 'pieces in all', int, default=4000),
      Flag('split', 'split whose text to read', default='train'),
      Flag('module', 'a module of yours that registers the task'),
    ),
  ),
}


def run(argv: Sequence[str], commands: Mapping[str, Command] = COMMANDS) -> int:
  """Runs a command line.

  Args:
    argv: the arguments, without the program's name.
    commands: the commands there are.

  Returns:
    The exit code: 0, 2 after a mistake of the user's, 75 if the same command
    goes on when it is started again, 130 if interrupted.
  """
  try:
    _run(argv, commands)
  except errors.UserError as error:
    print(f'perlhf: error: {_plain_message(error)}', file=sys.stderr)
    return 2
  except errors.PreemptedError as error:
    print(f'perlhf: {_plain_message(error)}', file=sys.stderr)
    return errors.GOES_ON
  except KeyboardInterrupt:
    print('perlhf: interrupted', file=sys.stderr)
    return 130
  return 0


def cli() -> None:
  """Runs this process's own command line and exits."""
  logs.silence_native_libraries()
  logs.show()
  # So that MIXTURE_OR_TASK_MODULE finds a file of the current folder. Last,
  # so that no file there hides a library.
  sys.path.append('')
  argv = sys.argv[1:]
  if command_line.names_hosts(argv):
    sys.exit(hosts.supervised(lambda: run(argv)))
  sys.exit(run(argv))


def _run(argv: Sequence[str], commands: Mapping[str, Command]) -> None:
  """Runs a command line; mistakes are UserErrors."""
  if not argv or argv[0] in _HELP:
    print(command_line.overview(commands))
    return
  name, *args = argv
  command = _find(name, commands)
  others = [arg for arg in args if arg not in _HELP]
  if len(others) < len(args):
    print(command_line.help_page(name, command, others))
    return
  arguments = command_line.parse(name, command, args)
  if arguments.hosts is None:
    call, _ = _load(command, arguments)
  else:
    call = hosts.load_together(
      arguments.hosts,
      [f'command: {name}'],
      lambda: _load(command, arguments),
    )
  call()


def _load(
  command: Command, arguments: Arguments
) -> tuple[Callable[[], Any], str]:
  """Gives the call that does the command, and its configuration as text."""
  if not command.gin_file:
    with logs.without_noise():
      call = functools.partial(_function(command), **arguments.keywords)
    values = arguments.keywords.items()
    return call, '\n'.join(f'{name}: {value}' for name, value in values)
  config = gin_loading.read(
    arguments.gin_files,
    arguments.bindings,
    arguments.search_paths,
    {flag.macro: flag.name for flag in command.flags if flag.macro},
  )
  with logs.without_noise():
    call = gin_loading.load(config, _function(command))
  return call, operative_config.config_text()


def _find(name: str, commands: Mapping[str, Command]) -> Command:
  """Finds a command by name."""
  if name in commands:
    return commands[name]
  if name.startswith('-'):
    raise errors.ConfigError(
      f'the command comes first: perlhf COMMAND {name} ... '
      f'(one of {", ".join(commands)})'
    )
  close = difflib.get_close_matches(name, commands, n=1)
  hint = f'did you mean {close[0]}? ' if close else ''
  raise errors.ConfigError(
    f'no command {name}; {hint}There are {", ".join(commands)}'
  )


def _function(command: Command):
  """Imports a command's function; takes seconds for those that read data."""
  return getattr(importlib.import_module(command.module), command.function)


def _plain_message(error: BaseException) -> str:
  """Gives an error's own message, without the call sites that gin appends.

  Gin raises a copy of an exception that passes through a configurable; the
  copy's class derives from the original's and has its name.
  """
  original = error.__context__
  while (
    type(error).__base__ is type(original)
    and type(error).__name__ == type(original).__name__
  ):
    error, original = original, original.__context__
  return str(error)


if __name__ == '__main__':
  cli()
