"""Tests of the figures of judgement."""
