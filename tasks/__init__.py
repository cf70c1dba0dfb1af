"""Built-in tasks: one module per data set.

Each module names the source and the licence of its data, and where to put the
files below PERLHF_DATA_DIR (local or `gs://`). `perlhf tasks` lists all tasks.

A task of your own needs one small module in the current folder or anywhere on
PYTHONPATH, and no change here:

  # my_tasks.py
  from perlhf_jax.data import preference_tasks

  def pair(record):  # One line of the file, as a dict.
    return {
      'inputs': record['question'],
      'chosen': record['better'],
      'rejected': record['worse'],
    }

  preference_tasks.add_preference_task(
    'my_rm', 'pairwise', pair, files='my_pairs.jsonl',
    splits={'train': 0.8, 'validation': 0.1, 'test': 0.1})

Use it with `--gin.MIXTURE_OR_TASK_MODULE="'my_tasks'"
--gin.MIXTURE_OR_TASK_NAME="'my_rm'"`. These are the kinds of tasks, and the
features that such a function returns:

  sft: inputs (the prompt) and targets (a good response), for train_sft;
  pairwise: inputs, chosen (the better response), rejected, and perhaps margin,
    a number by which the scores should differ, for train_reward and train_dpo;
  pointwise: inputs, targets (a response) and label (1 if it is good, 0 if not),
    for train_reward;
  prompts: inputs, for train_policy; with `references=True` also references, a
    list of right answers, which only judges see;
  any kind: with `images=True` also images, a list of encoded PNG or JPEG images
    (bytes) or of paths of such files (str).

Any other SeqIO task with the features of a kind works as well.
docs/own_data.md has a task of each kind, and the commands that use them.
"""

# Distinguishes this package from another one named `tasks`.
HOLDS_PERLHF_JAX_TASKS = True
