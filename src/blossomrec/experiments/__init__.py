"""Measuring models: single runs, baselines, and the tables and figures of the paper."""
