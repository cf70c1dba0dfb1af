"""The mutants that cosmic-ray can make of a module, and which are left out.

Left out are, by their place in the syntax tree, annotations and names of types
(but not the calls in them: `checks.Range(least=1)` checks a setting), what a
`raise` says, what is logged, and the lone `*` between parameters. Left out are
also operators that cross from arithmetic to bits (`a << b` of floats is a
TypeError) or from `==` to `is` (constant for arrays, equal for small integers).
Cosmic-ray itself changes no strings. Nothing is left out because it survives.
"""

import ast
from collections.abc import Iterator
import pathlib
import re

import cosmic_ray.ast
from cosmic_ray.ast import ast_query
import cosmic_ray.mutating
import cosmic_ray.plugins
from cosmic_ray.work_item import MutationSpec

_GROUPS = (
  {'Add', 'Sub', 'Mul', 'Div', 'FloorDiv', 'Mod', 'Pow'},
  {'RShift', 'LShift'},
  {'BitOr', 'BitAnd', 'BitXor'},
  {'Eq', 'NotEq', 'Lt', 'LtE', 'Gt', 'GtE'},
  {'Is', 'IsNot'},
)
_SWAP = re.compile(r'.*/Replace(?:Binary|Comparison)Operator_(\w+)_(\w+)')
_Span = tuple[tuple[int, int], tuple[int, int]]


def _operators() -> dict[str, object]:
  used = {}
  for name in sorted(cosmic_ray.plugins.operator_names()):
    operator = cosmic_ray.plugins.get_operator(name)
    swap = _SWAP.fullmatch(name)
    stays = not swap or any({*swap.groups()} <= group for group in _GROUPS)
    if stays and not operator.arguments():
      used[name] = operator()
  return used


# By name.
OPERATORS = _operators()


def mutants(path: pathlib.Path, shown: str) -> Iterator[MutationSpec]:
  """Yields the mutants of a module.

  Args:
    path: of its source.
    shown: the path to record.
  """
  source = path.read_text(encoding='utf-8')
  left_out, kept = _spans(ast.parse(source))
  nodes = list(cosmic_ray.ast.ast_nodes(cosmic_ray.ast.get_ast(source)))
  for name, operator in OPERATORS.items():
    places = (
      (node, *span)
      for node in nodes
      for span in operator.mutation_positions(node)
    )
    for occurrence, (node, start, end) in enumerate(places):
      if _is_in(start, left_out) and not _is_in(start, kept):
        continue
      if node.parent is not None and node.parent.type == 'parameters':
        continue  # The `*` before parameters that have to be named.
      spec = MutationSpec(
        module_path=shown,
        operator_name=name,
        occurrence=occurrence,
        start_pos=start,
        end_pos=end,
        definition_name=ast_query.ASTQuery(node).get_definition_name(),
      )
      yield spec


def mutate(source: str, spec: MutationSpec) -> str | None:
  """Returns the source of a mutant; None if it cannot be made.

  Cosmic-ray cannot replace an exception that has a dot in its name.
  """
  operator = OPERATORS[spec.operator_name]
  try:
    mutated = cosmic_ray.mutating.mutate_code(source, operator, spec.occurrence)
    compile(mutated, '<mutant>', 'exec', dont_inherit=True)
  except (AttributeError, SyntaxError):
    return None
  return mutated


def _is_in(position: tuple[int, int], spans: list[_Span]) -> bool:
  return any(start <= position < end for start, end in spans)


def _spans(tree: ast.Module) -> tuple[list[_Span], list[_Span]]:
  """Returns the spans that are left out, and those in them that are not."""
  left_out, kept = [], []
  for node in ast.walk(tree):
    hints = [
      getattr(node, 'annotation', None),
      getattr(node, 'returns', None),
      node.value if _is_alias(node, tree) else None,
    ]
    for hint in filter(None, hints):
      left_out.append(_span(hint))
      calls = [each for each in ast.walk(hint) if isinstance(each, ast.Call)]
      kept += map(_span, calls)
    if isinstance(node, ast.Raise) or _is_logging(node):
      left_out.append(_span(node))
  return left_out, kept


def _is_alias(node: ast.AST, tree: ast.Module) -> bool:
  """Whether the node names a type: `Mask = Bool[Array, ' examples'] | None`."""
  return (
    isinstance(node, ast.Assign)
    and node in tree.body
    and isinstance(node.targets[0], ast.Name)
    and re.fullmatch(r'[A-Z]\w*[a-z]\w*', node.targets[0].id) is not None
  )


def _is_logging(node: ast.AST) -> bool:
  return isinstance(node, ast.Call) and ast.unparse(node.func).startswith(
    'logging.'
  )


def _span(node: ast.AST) -> _Span:
  return (
    (node.lineno, node.col_offset),
    (node.end_lineno, node.end_col_offset),
  )
