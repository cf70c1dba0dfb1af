"""What every stage that tunes a policy asks of its initial model."""

from perlhf_jax.core import errors
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config


def check(
  model: t5_config.T5Config | None,
  lora: lora_lib.LoraConfig | None,
  path: str | None,
  *,
  with_dropout: str,
) -> None:
  """Checks that a policy has a usable initial model, without reading it.

  Args:
    model: architecture; None for the initial checkpoint's.
    lora: adapters; None for full tuning.
    path: path of the initial checkpoint.
    with_dropout: what dropout would do, as a clause for the message.

  Raises:
    ConfigError: there is no initial checkpoint, or there is dropout.
  """
  if path is None:
    raise errors.ConfigError(
      'A policy starts from a language model: set INITIAL_CHECKPOINT_PATH to '
      'a MODEL_DIR, such as one of perlhf train_sft, one of its steps, or a '
      'directory of any format that perlhf inspect knows.'
    )
  for name, config in (('T5Config', model), ('LoraConfig', lora)):
    if config is not None and config.dropout_rate:
      raise errors.ConfigError(
        f'{name}.dropout_rate is {config.dropout_rate}, but a policy is tuned '
        f'without dropout: with it, {with_dropout}. Set it to 0 (DROPOUT_RATE '
        'for the model).'
      )
