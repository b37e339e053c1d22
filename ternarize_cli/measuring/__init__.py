"""Timers, facts about the machine, and figures, which benchmarks, indexes and evaluations share."""
