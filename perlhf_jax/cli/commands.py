"""The commands, with an example of each."""

from collections.abc import Mapping
import dataclasses
import functools

from perlhf_jax.cli import flags as flags_lib
from perlhf_jax.cli.flags import Flag

# Asks for a check instead of a run.
CHECK = Flag('check', 'check the command as far as possible, and start nothing')


@dataclasses.dataclass(frozen=True)
class Command:
  """A command.

  Attributes:
    help: one line for the overview.
    function: full name of the function that runs it; imported when called.
    example: a command line that works.
    gin_file: its own gin file, read before the user's files; None for a command
      whose flags are the arguments of its function.
    macros: for a command with a gin file, the macro that each of its flags
      sets; flags are arguments of its function or `mesh_shape`.
    on_hosts: whether it can be checked and can run on several hosts.
    compiles_for_others: whether it compiles for chips that are not attached.
  """

  help: str
  function: str
  example: str
  gin_file: str | None = None
  macros: Mapping[str, str] = dataclasses.field(default_factory=dict)
  on_hosts: bool = False
  compiles_for_others: bool = False

  @functools.cached_property
  def flags(self) -> tuple[Flag, ...]:
    """Its own flags."""
    own = flags_lib.of(self.function)
    if not self.gin_file:
      return own
    others = flags_lib.of('perlhf_jax.stages.score.score')
    mesh = [flag for flag in others if flag.argument == 'mesh_shape']
    # The gin file holds the defaults and requirements.
    return tuple(
      dataclasses.replace(flag, default=None, required=False)
      for flag in (*own, *mesh)
      if flag.argument in self.macros
    )

  @property
  def check_flags(self) -> tuple[Flag, ...]:
    """Flags of a check, `CHECK` first."""
    known = flags_lib.of('perlhf_jax.plan.check.check')
    return (CHECK, *known) if self.on_hosts else ()

  @property
  def host_flags(self) -> tuple[Flag, ...]:
    """Flags of a run on several hosts."""
    return host_flags() if self.on_hosts else ()


def host_flags() -> tuple[Flag, ...]:
  """Returns the flags that connect the processes of a run."""
  return flags_lib.of('perlhf_jax.training.multihost.initialize')


_TRAIN_EXAMPLE = (
  'perlhf {name}'
  ' --gin_file=gin/models/t5_tiny.gin --gin_file=gin/lora/{lora}.gin'
  ' --gin.MIXTURE_OR_TASK_NAME="\'{task}\'"'
  ' --gin.MODEL_DIR="\'runs/{name}\'" --gin.TRAIN_STEPS=500'
)
_MESH_SHAPE = {'mesh_shape': 'MESH_SHAPE'}

COMMANDS: Mapping[str, Command] = {
  'train_sft': Command(
    help='supervised tuning on prompts and good responses',
    function='perlhf_jax.stages.train_sft.train_sft',
    example=_TRAIN_EXAMPLE.format(
      name='train_sft', task='demo_sft', lora='none'
    ),
    gin_file='gin/runs/train_sft.gin',
    macros=_MESH_SHAPE,
    on_hosts=True,
  ),
  'train_reward': Command(
    help='a reward model, from pairs of responses or from labelled ones',
    function='perlhf_jax.stages.train_reward.train_reward',
    example=_TRAIN_EXAMPLE.format(
      name='train_reward', task='demo_rm', lora='attention'
    )
    + ' --gin.INITIAL_CHECKPOINT_PATH="\'runs/train_sft\'"',
    gin_file='gin/runs/train_reward.gin',
    macros=_MESH_SHAPE,
    on_hosts=True,
  ),
  'train_dpo': Command(
    help='preference tuning of a policy on pairs, without a reward model',
    function='perlhf_jax.stages.train_dpo.train_dpo',
    example=_TRAIN_EXAMPLE.format(
      name='train_dpo', task='demo_rm', lora='attention'
    )
    + ' --gin.INITIAL_CHECKPOINT_PATH="\'runs/train_sft\'"',
    gin_file='gin/runs/train_dpo.gin',
    macros=_MESH_SHAPE,
    on_hosts=True,
  ),
  'train_policy': Command(
    help='reinforcement learning of a policy against a reward',
    function='perlhf_jax.stages.train_policy.train_policy',
    example=_TRAIN_EXAMPLE.format(
      name='train_policy', task='demo_prompts', lora='attention'
    )
    + ' --gin_file=gin/rl/reinforce.gin'
    ' --gin.INITIAL_CHECKPOINT_PATH="\'runs/train_sft\'"'
    ' --gin.REWARD_CHECKPOINT="\'runs/train_reward\'"',
    gin_file='gin/runs/train_policy.gin',
    macros=_MESH_SHAPE,
    on_hosts=True,
  ),
  'evaluate': Command(
    help='the metrics of a checkpoint on a task or a file of candidates',
    function='perlhf_jax.stages.evaluate.evaluate',
    example=(
      'perlhf evaluate --checkpoint=runs/train_reward'
      ' --gin.MIXTURE_OR_TASK_NAME="\'demo_rm\'"'
    ),
    gin_file='gin/runs/evaluate.gin',
    macros={
      'checkpoint': 'CHECKPOINT_PATH',
      'batch_size': 'BATCH_SIZE',
      'base_checkpoint': 'BASE_CHECKPOINT_PATH',
      'input_path': 'INPUT',
      'output_path': 'OUTPUT',
      **_MESH_SHAPE,
    },
    on_hosts=True,
  ),
  'score': Command(
    help='the score, or the log-probability, of each line of a file',
    function='perlhf_jax.stages.score.score',
    example=(
      'perlhf score --checkpoint=runs/train_reward --input=pairs.jsonl'
      ' --output=scores.jsonl'
    ),
    on_hosts=True,
  ),
  'generate': Command(
    help='a response, or several, to each line of a file',
    function='perlhf_jax.stages.generate.generate',
    example=(
      'perlhf generate --checkpoint=runs/train_sft --input=prompts.jsonl'
      ' --output=responses.jsonl --temperature=0'
    ),
    on_hosts=True,
  ),
  'benchmark': Command(
    help=(
      'LoRA against full tuning on this machine: time, memory, trained share'
    ),
    function='perlhf_jax.benchmark.benchmark.benchmark',
    example=(
      'perlhf benchmark'
      ' --gin_file=gin/models/t5_tiny.gin --gin_file=gin/rl/reinforce.gin'
      ' --output=benchmark.json'
    ),
    gin_file='gin/runs/benchmark.gin',
    macros={'output': 'OUTPUT', **_MESH_SHAPE},
    on_hosts=True,
  ),
  'benchmark_input': Command(
    help='images per second of the input pipeline on this machine',
    function='perlhf_jax.benchmark.benchmark_input.benchmark_input',
    example='perlhf benchmark_input --task=easy_vqa_rm --image_size=64',
  ),
  'plan': Command(
    help='which TPU slice a run fits, found without a TPU',
    function='perlhf_jax.plan.plan.plan',
    example=(
      'perlhf plan'
      ' --gin_file=gin/models/t5_1_1_xxl.gin'
      ' --gin_file=gin/rl/reinforce.gin --topology=v5e-16,v5p-8'
      ' --output=plan.json'
    ),
    gin_file='gin/runs/plan.gin',
    macros={
      'topology': 'TOPOLOGY',
      'search': 'SEARCH',
      'output': 'OUTPUT',
      **_MESH_SHAPE,
    },
    compiles_for_others=True,
  ),
  'sweep': Command(
    help='many runs with tuned learning rates, compared over seeds',
    function='perlhf_jax.sweep.sweep.sweep',
    example=(
      'perlhf sweep --gin_file=gin/sweeps/demo_reward.gin'
      ' --gin.INITIAL_CHECKPOINT_PATH="\'runs/train_sft\'"'
      ' --sweep_dir=runs/sweep'
    ),
    gin_file='gin/runs/sweep.gin',
    macros={'sweep_dir': 'SWEEP_DIR', 'dry_run': 'DRY_RUN'},
  ),
  'convert': Command(
    help='a checkpoint in another format, or in ours without a base',
    function='perlhf_jax.stages.convert.convert',
    example=(
      'perlhf convert --source=runs/train_policy --to=hf --target=policy_hf'
    ),
  ),
  'average': Command(
    help='the mean of the weights of several checkpoints, as a checkpoint',
    function='perlhf_jax.stages.average.average',
    example=(
      'perlhf average'
      ' --checkpoints=runs/train_reward,runs/train_reward/checkpoints/best'
      ' --target=rm_average'
    ),
  ),
  'inspect': Command(
    help='what a checkpoint is: format, size, adapters, base, figures',
    function='perlhf_jax.stages.inspect_checkpoint.inspect_checkpoint',
    example='perlhf inspect --checkpoint=runs/train_reward',
  ),
  'report': Command(
    help='one HTML page of a run, a folder of runs or a sweep: curves, samples',
    function='perlhf_jax.report.report.report',
    example='perlhf report --model_dir=runs/train_policy',
  ),
  'tasks': Command(
    help='the registered tasks: source, licence, and where the files go',
    function='perlhf_jax.stages.list_tasks.list_tasks',
    example='perlhf tasks',
  ),
  'train_vocabulary': Command(
    help='a SentencePiece vocabulary of the text of a task',
    function='perlhf_jax.data.vocabulary_training.train_vocabulary',
    example=(
      'perlhf train_vocabulary --task=taskmaster_coffee_sft'
      ' --output=runs/coffee.model --vocab_size=2000'
    ),
  ),
}
