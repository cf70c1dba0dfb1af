"""The type checker that conftest.py puts on every function under test."""

import beartype

# The numeric tower lets an int stand for a float, as PEP 484 says: gin users
# write `centering = 0`.
checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
