"""The roadmap of speeding up a training: FP32, mixed precision, accumulation, distributed, quantisation; where a run stands.

One station a file, each a function of the run's numbers. A gain is "measured" where the run measured it, "estimate" where
only a bound follows from what was measured, and otherwise it is left out and said so.
"""
