"""Mixtures of the built-in tasks: several data sets in one run.

A mixture draws from its tasks at the given rates, which need not sum to one.
Its tasks must be of one kind. When a run reads a mixture, the files of all its
tasks must exist. MIXTURE_OR_TASK_NAME accepts the name of a mixture like the
name of a task.

all_prompts_text: the prompts of all text data sets, each equally often. For
your own choice of data sets, in a module of your own:

  import seqio

  seqio.MixtureRegistry.add(
    'my_prompts', [('tldr_prompts', 3.0), ('hh_helpful_prompts', 1.0)])

shp_domains_rm: the pairs of each subreddit of SHP, equally often, while shp_rm
consists mostly of the five largest.
"""

import seqio

# These modules register the tasks that are named here.
from tasks import bolt  # noqa: F401
from tasks import hh  # noqa: F401
from tasks import shp
from tasks import taskmaster  # noqa: F401
from tasks import tldr  # noqa: F401

seqio.MixtureRegistry.add(
  'all_prompts_text',
  [
    'bolt_prompts',
    'hh_harmless_prompts',
    'hh_helpful_prompts',
    'shp_prompts',
    'taskmaster_coffee_prompts',
    'taskmaster_ticketing_prompts',
    'tldr_prompts',
  ],
  default_rate=1.0,
)

seqio.MixtureRegistry.add(
  'shp_domains_rm',
  [f'shp_{domain}_rm' for domain in shp.DOMAINS],
  default_rate=1.0,
)
