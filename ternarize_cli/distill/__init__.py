"""Trains a ternary student to give the embeddings of its full-precision teacher, without labels (`distill`)."""

from ternarize_cli.distill.data import Sources
from ternarize_cli.distill.loop import DistillReport, distill
from ternarize_cli.distill.options import Progress, Training

__all__ = ["DistillReport", "Progress", "Sources", "Training", "distill"]
