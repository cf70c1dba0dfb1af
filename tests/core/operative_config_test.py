import gin

from perlhf_jax.core import operative_config


def test_config_text_is_known_before_anything_is_called():
  gin.clear_config()
  assert operative_config.config_text().strip() == ''
  gin.parse_config('STEPS = 3\nNAME = "a"')
  text = operative_config.config_text()
  gin.clear_config()
  gin.parse_config(text)
  assert gin.query_parameter('NAME/macro.value') == 'a'
  assert operative_config.config_text() == text
  gin.clear_config()
