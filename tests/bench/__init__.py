"""Benchmarks: the rows of the performance table, run by ``manage.py bench``. None of them is a test with a clock."""
