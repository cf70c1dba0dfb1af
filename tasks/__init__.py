"""Tasks: one file a data set.

Each file says where its data comes from, under which licence, and where its
files go below PERLHF_DATA_DIR (local or `gs://`). `perlhf tasks` lists them.

A task of your own takes one small file anywhere on PYTHONPATH, no change
here:

  from perlhf_jax.data import preference_tasks

  def parse(record):  # One line of the file, as a dict.
    return {
      'inputs': record['question'],
      'chosen': record['better'],
      'rejected': record['worse'],
    }

  preference_tasks.add_preference_task(
    'my_rm', 'pairwise', parse, files='my_pairs.jsonl',
    splits={'train': 0.9, 'validation': 0.1})

and is used with `--gin.MIXTURE_OR_TASK_MODULE="'my_tasks'"
--gin.MIXTURE_OR_TASK_NAME="'my_rm'"`. Any other SeqIO task works as well, as
long as its features are those of a kind: inputs and targets (sft); inputs,
chosen and rejected (pairwise); inputs, targets and label (pointwise); inputs
alone (prompts). Each may have `images` too, a list of encoded PNG or JPEG
images (bytes) or of paths of such files, and prompts `references`, the answers
that a judge accepts: `add_preference_task(..., images=True, references=True)`.
"""

# How perlhf_jax tells this package from another one named `tasks`.
HOLDS_PERLHF_JAX_TASKS = True
