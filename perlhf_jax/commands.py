"""The commands, their flags and an example of each."""

from collections.abc import Mapping

from perlhf_jax.command_line import Command
from perlhf_jax.command_line import Flag

_TRAIN_EXAMPLE = (
  'perlhf {name}'
  ' --gin_file=gin/models/t5_tiny.gin --gin_file=gin/lora/{lora}.gin'
  ' --gin.MIXTURE_OR_TASK_NAME="\'{task}\'"'
  ' --gin.MODEL_DIR="\'runs/{name}\'" --gin.TRAIN_STEPS=500'
)

_CHECKPOINT = (
  'a MODEL_DIR, one of its steps, or a directory of any format that perlhf'
  ' inspect knows'
)

_BASE = "where an adapter's base is, if not where the adapter says"

_MESH_SHAPE = Flag(
  'mesh_shape',
  'sizes of (data, fsdp, tensor), for models that do not fit one device',
  default='-1,1,1',
)

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
      Flag('batch_size', 'examples per step', int, macro='BATCH_SIZE'),
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
        'a .jsonl file of lines {"prompt": ..., "response": ...}, of'
        ' several responses in a list too',
        required=True,
        argument='input_path',
      ),
      Flag(
        'output',
        'the file to write: the same lines with "score" or "logprob"',
        required=True,
        argument='output_path',
      ),
      Flag('batch_size', 'responses per step', int, default=32),
      Flag('base_checkpoint', _BASE),
      Flag(
        'prompt_length',
        "longest prompt; default: the training's for a reward model, none for a"
        ' language model',
        int,
      ),
      Flag(
        'response_length',
        "longest response, of reward models only; default: the training's",
        int,
      ),
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
      Flag(
        'num_beams',
        "beam search of this width, as transformers', instead of sampling",
        int,
      ),
      Flag(
        'num_samples',
        'responses to a prompt; "response" is a list if several',
        int,
        default=1,
      ),
      Flag(
        'max_length',
        "longest response; default: the training's, 128 where nothing tells it",
        int,
      ),
      Flag('seed', 'of the sampling', int, default=0, minimum=0),
      Flag('batch_size', 'prompts per step', int, default=32),
      Flag('base_checkpoint', _BASE),
      Flag(
        'prompt_length',
        "longest prompt; default: the training's, none where nothing tells it",
        int,
      ),
      _MESH_SHAPE,
    ),
    on_hosts=True,
  ),
  'benchmark': Command(
    help='LoRA against full tuning here: time, memory, trained share',
    module='perlhf_jax.benchmark.benchmark',
    function='benchmark',
    example=(
      'perlhf benchmark'
      ' --gin_file=gin/models/t5_tiny.gin --gin_file=gin/rl/reinforce.gin'
      ' --output=benchmark.json'
    ),
    flags=(Flag('output', 'a JSON file for the figures', macro='OUTPUT'),),
    gin_file='gin/runs/benchmark.gin',
    on_hosts=True,
  ),
  'benchmark_input': Command(
    help='images per second that the input pipeline decodes and batches here',
    module='perlhf_jax.benchmark.benchmark_input',
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
    module='perlhf_jax.plan.plan',
    function='plan',
    example=(
      'perlhf plan'
      ' --gin_file=gin/models/t5_1_1_xxl.gin'
      ' --gin_file=gin/rl/reinforce.gin --topology=v5e-16,v5p-8'
      ' --output=plan.json'
    ),
    flags=(
      Flag(
        'topology',
        'slices of Cloud TPU, with commas between; 2xv5e-16 is two in one run',
        macro='TOPOLOGY',
      ),
      Flag(
        'search',
        'batch_size: the largest batch that fits; topology: the smallest slice',
        macro='SEARCH',
      ),
      Flag(
        'output',
        'a JSON file, kept after every row; the same command goes on from it',
        macro='OUTPUT',
      ),
    ),
    gin_file='gin/runs/plan.gin',
    compiles_for_others=True,
  ),
  'convert': Command(
    help='a checkpoint in another format, or in ours without a base',
    module='perlhf_jax.stages.convert',
    function='convert',
    example=(
      'perlhf convert --source=runs/train_policy --to=hf --target=policy_hf'
    ),
    flags=(
      Flag('source', _CHECKPOINT, required=True),
      Flag(
        'to',
        'the format to write: perlhf (ours), hf, peft or t5x',
        required=True,
      ),
      Flag('target', 'the folder to write, new or empty', required=True),
      Flag('base_checkpoint', _BASE),
      Flag(
        'base',
        'what a PEFT directory names as its base; default: where it is now',
      ),
      Flag(
        'vocabulary',
        'of a T5X checkpoint, which has none: a SentencePiece model, or byte',
      ),
      Flag(
        'extra_ids',
        'sentinels behind it; T5 has 100',
        int,
        default=0,
        minimum=0,
      ),
      Flag(
        'dtype',
        'of the weights: float32 or bfloat16; default: bfloat16 if the source '
        'has all of them in it, float32 if not',
      ),
      Flag('overwrite', 'replace a model that is there', bool, default=False),
      _MESH_SHAPE,
    ),
  ),
  'inspect': Command(
    help='what a checkpoint is: format, size, adapters, base, figures',
    module='perlhf_jax.stages.inspect_checkpoint',
    function='inspect_checkpoint',
    example='perlhf inspect --checkpoint=runs/train_reward',
    flags=(
      Flag(
        'checkpoint',
        'a MODEL_DIR, one of its steps, or a directory: Hugging Face T5, a'
        " PaLI's parts, PEFT, T5X",
        required=True,
      ),
      Flag('base_checkpoint', _BASE),
      Flag(
        'verify',
        'of a MODEL_DIR or a step of it, read every file, and say which are'
        ' damaged',
        bool,
        default=False,
      ),
    ),
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
