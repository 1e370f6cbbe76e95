"""YAML that people write, and that ``calibrate`` does: read with errors that name file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pilotfish_core.errors import InvalidParameter, MissingExtra

Values = dict[str, Any]  # nested, as a file has them
MAX_FILE_BYTES: Final = 1 << 20


def read_file(file: Path) -> Values:
    """What a scenario file says. Raises InvalidParameter, by line where it is no YAML; MissingExtra."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise InvalidParameter.of("the scenario file", str(file), f"at most {MAX_FILE_BYTES} bytes")
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter.of("the scenario file", str(file), f"a YAML file ({error})") from None
    values = read_yaml(source, f"the scenario file {file}")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidParameter.of(f"the scenario file {file}", values, "keys and values")
    return values


def read_yaml(source: str, what: str) -> Any:
    """What YAML text says; ``what`` names it in errors. Raises InvalidParameter, MissingExtra."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise MissingExtra.of("yaml", "sim", "a scenario") from None

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, of which YAML would silently take the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for name, _ in node.value:
                if name.value in seen:
                    raise InvalidParameter(
                        f"{what}, line {name.start_mark.line + 1}: the key {name.value} stands twice; expected it once"
                    )
                seen.add(name.value)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(source, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "no YAML"
        raise InvalidParameter(f"{what}{line}: {problem}; expected YAML") from None
