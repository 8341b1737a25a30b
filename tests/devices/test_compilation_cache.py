"""bertgpt.devices.compilation_cache: a folder that only its owner can write."""

import os

import program
import pytest

from bertgpt.devices import compilation_cache
from bertgpt.errors import ConfigError


def test_the_compilation_cache_is_private(tmp_path):
  result = program.run_python("from bertgpt.devices import compilation_cache\n"
                              f"compilation_cache.enable('{tmp_path}/a/b')")
  assert result.returncode == 0, result.stderr
  assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("field, used", [("~/.cache/bertgpt/xla", "mine"), ("FOLDER/own", "own")])
def test_the_variable_of_jax_replaces_the_default_cache(tmp_path, field, used):
  folder = field.replace("FOLDER", str(tmp_path))
  result = program.run_python(f"""
import os
os.environ.update(JAX_COMPILATION_CACHE_DIR="{tmp_path}/mine", HOME="{tmp_path}/home")
import jax
from bertgpt.devices import compilation_cache
compilation_cache.enable("{folder}")
print(jax.config.jax_compilation_cache_dir)""")
  assert result.stdout.strip() == f"{tmp_path}/{used}", result.stderr
  assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_a_compilation_cache_that_others_can_write_is_refused(tmp_path, mode):
  tmp_path.chmod(mode)
  with pytest.raises(ConfigError, match="other users can write to it"):
    compilation_cache.enable(str(tmp_path))


def test_a_compilation_cache_of_another_user_is_refused(tmp_path):
  if os.geteuid():
    pytest.skip("only root can give a folder away")
  tmp_path.chmod(0o700)
  os.chown(tmp_path, 12345, 12345)
  with pytest.raises(ConfigError, match=f"belongs to the user with the number 12345, "
                                        f".*chown 0 {tmp_path}"):
    compilation_cache.enable(str(tmp_path))
