"""The shapes that a model runner keeps to, and those of normal mode; ``determinism`` finds those of equal bits."""

from __future__ import annotations

import dataclasses
from typing import Final

from pilotfish_cloud.engine.attention_plan import AttentionRule
from pilotfish_cloud.engine.model_runner import ModelRunner

Shape = tuple[int, int, bool]  # of a linear layer: in, out, bias


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """The shapes in use; its text is part of the fingerprint. ``tiles`` by (in, out, bias) of a linear layer.

    ``output_tiles``: of the output layer, where it may take fewer than its like.
    """

    attention: AttentionRule
    row_sizes: tuple[int, ...] | None = None
    tiles: tuple[tuple[Shape, tuple[int, ...]], ...] = ()
    output_tiles: tuple[int, ...] | None = dataclasses.field(default=None, repr=False)

    def apply(self, runner: ModelRunner) -> None:
        """Make ``runner`` follow this rule."""
        tiles = dict(self.tiles)
        for linear in runner.linears:
            linear.tile_sizes = tiles.get(linear.shape_key)
        if self.output_tiles is not None:
            runner.output_layer.tile_sizes = self.output_tiles
        runner.rule = self.attention
        runner.row_sizes = self.row_sizes


UNRULED: Final = Rule(AttentionRule())  # any shape


def normal_rule(runner: ModelRunner, *, max_rows: int) -> Rule:
    """Shapes of normal mode, for steps of up to ``max_rows`` rows.

    oneDNN compiles a kernel for every row count of a layer, keeps up to 1,024 of them of half a megabyte each, and
    takes a millisecond over each: on CPU row counts come from a short ladder. Elsewhere any will do.
    """
    if runner.device.type != "cpu":
        return UNRULED
    sizes = row_ladder(max_rows)
    return Rule(
        AttentionRule(), sizes, tuple((key, sizes) for key in sorted({each.shape_key for each in runner.linears}))
    )


def row_ladder(max_rows: int) -> tuple[int, ...]:
    """Row counts up to the first that holds ``max_rows``: each until 8, then in steps of at most a quarter."""
    sizes = [1]
    while sizes[-1] < max_rows:
        step = max(1, (1 << sizes[-1].bit_length()) >> 3)  # ..., 8, 10, 12, 14, 16, 20, ...
        sizes.append(sizes[-1] + step)
    return tuple(sizes)
