"""Tests of `biigma_cli.data`."""
