"""`distill`: self-taught distillation of a ternary student against its full-precision teacher."""

from ternarize_cli.distill.data import Sources
from ternarize_cli.distill.loop import DistillReport, distill
from ternarize_cli.distill.options import Progress, Training

__all__ = ["DistillReport", "Progress", "Sources", "Training", "distill"]
