"""What a checkpoint of a tiny policy says of itself."""

import tiny_models

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.data import vocabularies
from perlhf_jax.models import lora

_ORDER = {'batch_size': 8, 'data_seed': 0, 'init_seed': 0}
METADATA = run_metadata.RunMetadata(
  kind='policy',
  objective='rloo',
  tuning='lora',
  model=tiny_models.CONFIG,
  lora=lora.LoraConfig(rank=8),
  vocabulary=vocabularies.byte_vocabulary(),
  base={'path': '/a/sft', 'fingerprint': 'f0'},
  task='my_prompts',
  task_feature_lengths={'inputs': 32, 'targets': 17},
  truncate_prompt='keep_end',
  data_order=_ORDER | {'part': [0, 2], 'length_buckets': 0},
  policy={
    'reference': {'path': '/a/sft', 'fingerprint': 'f0'},
    'reward_checkpoints': [{'path': '/a/rm', 'fingerprint': 'f1'}],
    'kl_beta': 0.05,
  },
  module='my_tasks',
  versions={'jax': '0.10.2'},
  data={
    'rows': [48],
    'rates': [1.0],
    'shuffle': True,
    'fingerprint': 'd0',
  },
  eval_data={
    'rows': [8],
    'rates': [1.0],
    'shuffle': True,
    'fingerprint': 'e0',
  },
  settings={
    'policy_optimizer': {'class': 'Optimizer', 'learning_rate': 1e-3},
    'controller': None,
    'reward_functions': [{'function': 'a.b', 'code': 'c0', 'bound': {}}],
  },
  changes=[{'step': 1, 'task': ['other_prompts', 'my_prompts']}],
)
