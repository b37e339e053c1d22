"""Timers, facts of the machine, and figures: what benchmarks, indexes and evaluations share."""
