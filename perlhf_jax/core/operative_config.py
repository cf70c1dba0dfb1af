"""The gin configuration of this process, as text.

Stages write it to MODEL_DIR before they start. It is the whole parsed
configuration, not gin's "operative" one, which is known only when everything
has been called: too late for a run that dies.
"""

import gin


def config_text() -> str:
  """Gives the configuration as a gin file that would repeat it.

  Returns:
    Gin statements: imports, macros, bindings. Empty if nothing was parsed, as
    in a test that calls a stage directly.
  """
  return gin.config_str()
