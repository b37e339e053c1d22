"""`distill`: self-taught distillation of a ternary student against its full-precision teacher."""

from ternarize_cli.distill.loop import DistillReport, Progress, Training, distill

__all__ = ["DistillReport", "Progress", "Training", "distill"]
